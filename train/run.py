"""The run folder: whose it is, and the configuration that it belongs to."""

import dataclasses
import json
from typing import Any

import jax

from train.errors import InputError
from train.loop import JobConfig
from transformer_jax.checkpoints import write_file

# What may differ when a run goes on: where it runs and how it is watched, never what it computes.
FREE = ("run", "mesh", "log", "distributed")


def check_run(job: str, config: JobConfig) -> bool:
    """Whether the run folder already holds this run. Writes nothing.

    Raises:
        InputError: it holds a run of another job or configuration, or is a folder of something else.
    """
    folder = config.run
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run {folder} is a file; give a folder")
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"--run {folder} is not empty and holds no run (no config.json); give another folder")
        return False
    try:
        found = _flatten(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError(f"--run {folder}: its config.json cannot be read ({error}); give another folder") from error
    wanted = _flatten(_as_json(job, config))
    for name in sorted(found.keys() | wanted.keys()):
        if name.split(".")[0] not in FREE and found.get(name) != wanted.get(name):
            raise InputError(
                f"--run {folder} holds a run of another configuration: {name} is {found.get(name)!r} there and "
                f"{wanted.get(name)!r} here; give the same options, or another folder"
            )
    return True


def begin_run(job: str, config: JobConfig) -> None:
    """Makes the run folder and writes its config.json."""
    if jax.process_index() == 0:
        config.run.mkdir(parents=True, exist_ok=True)
        write_file(config.run / "config.json", (json.dumps(_as_json(job, config), indent=2) + "\n").encode())


def _as_json(job: str, config: JobConfig) -> dict[str, Any]:
    fields = {"job": job, **dataclasses.asdict(config)}
    return json.loads(json.dumps(fields, default=str))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
