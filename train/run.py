"""The run folder: whose it is, who works in it, and the configuration and data that it belongs to."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from train import seals
from train.data.fingerprint import changed
from train.errors import InputError
from train.loop import JobConfig
from train.optimizer import OptimizerConfig, make_schedule
from train.options import Count
from train.terminal import warn
from transformer_jax.checkpoints import write_file
from transformer_jax.checks import check_value, printed, shown

# What may differ when a run goes on: where it runs and how it is watched and scored, never what it computes.
FREE = (
    "run", "mesh", "log", "distributed", "remat", "max_bad_steps", "eval.every", "eval.patience", "checkpoint",
    "average", "best", "bleu_sentences", "epochs", "seeds",
)  # fmt: skip
# What may differ as far as the learning rates of the updates that were made stay what they were.
SCHEDULE = (
    "steps", "optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_steps", "optimizer.decay_steps",
)  # fmt: skip
LOCK = ".lock"


class Run:
    """A run folder while this process works in it; no other process can at the same time.

    Entering makes the folder, so that one that cannot be written is found out before any work; unless `begin` is
    called, leaving removes it again.

    Args:
        fingerprint: what is known of it by now, where options follow from the data (steps from epochs): data that
            changed is named then, not the options.

    Attributes:
        going_on: whether the folder already holds this run.

    Raises (when entered; nothing is changed then):
        InputError: the folder cannot be made or written, another process works in it, or it holds a run of another
            job or configuration, or something else.
    """

    def __init__(self, job: str, config: JobConfig, fingerprint: Mapping[str, str] | None = None) -> None:
        self._job, self._config, self.folder = job, config, config.run
        self._known = fingerprint or {}
        self._made: list[Path] = []
        self._lock: int | None = None
        self.going_on = False

    def __enter__(self) -> Self:
        try:
            self._found = self._read()
            self.going_on = self._found is not None
            if jax.process_index() == 0:
                self._make()
                self._lock = _lock(self.folder)
                self._found = self._read()  # whoever held the lock a moment ago may have begun
                self.going_on = self._found is not None
        except OSError as error:
            self.__exit__(None, None, None)
            raise InputError(
                f"--run {self.folder}: {error.strerror or error}; give a folder that can be written"
            ) from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.folder / LOCK).unlink()
            os.close(self._lock)
            self._lock = None
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def begin(self, fingerprint: dict[str, str]) -> None:
        """Writes config.json with the options and the fingerprint of what the run reads; from here the folder stays.

        Raises:
            InputError: the run was begun with another fingerprint; nothing is written then.
        """
        found = self._found["fingerprint"] if self._found else fingerprint
        if name := changed(found, fingerprint):
            raise self._changed(name)
        self._made = []
        if jax.process_index() == 0:
            content = {**_as_json(self._job, self._config), "fingerprint": fingerprint}
            write_file(self.folder / "config.json", (json.dumps(content, indent=2) + "\n").encode())

    def _changed(self, name: str) -> InputError:
        return InputError(
            f"{name} is not what it was when the run in {self.folder} began; restore it, or give another --run "
            f"({_start_from(self.folder)})"
        )

    def _make(self) -> None:
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self._made = missing
        self.folder.mkdir(parents=True, exist_ok=True)

    def _read(self) -> dict[str, Any] | None:
        """config.json if the folder holds this run, None if it holds nothing."""
        folder, path = self.folder, self.folder / "config.json"
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--run {folder} is a file; give a folder")
        if not path.exists():
            if folder.is_dir() and any(entry.name != LOCK for entry in folder.iterdir()):
                raise InputError(f"--run {folder} is not empty and holds no run (no config.json); give another folder")
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for name, digest in self._known.items():
                if found.get("fingerprint", {}).get(name, digest) != digest:
                    raise self._changed(printed(name))
            self._compare(found)
            if not all(isinstance(digest, str) for digest in found["fingerprint"].values()):
                raise ValueError("its fingerprint is none")
        except InputError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {shown(str(error))}"
            raise InputError(
                f"--run {folder}: its config.json cannot be read ({reason}); give another folder"
            ) from error
        return found

    def _compare(self, found: dict[str, Any]) -> None:
        """Raises InputError where the run in the folder was another, or where its past would have been."""
        was, now = _flatten(found), _flatten(_as_json(self._job, self._config))
        folders = [*self.folder.glob("checkpoints"), *self.folder.glob("seed-*/checkpoints")]
        done = max((step for saved in folders for step in seals.scan(saved)[0]), default=0)
        if done > self._config.steps:
            raise InputError(
                f"--steps {self._config.steps}: the run in {self.folder} has a checkpoint of step {done} already"
            )
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) == now.get(name) or _among(name, (*FREE, "fingerprint")):
                continue
            if _among(name, SCHEDULE) and self._same_past(found, done):
                continue
            raise InputError(
                f"--run {self.folder} holds a run of another configuration: {_option(name)} is {shown(was.get(name))} "
                f"there and {shown(now.get(name))} here; give the same options, or another folder "
                f"({_start_from(self.folder)})"
            )

    def _same_past(self, found: dict[str, Any], done: int) -> bool:
        """Whether the updates up to step `done` had the learning rates that they would have now."""
        try:
            check_value("--steps", found["steps"], Count)
            before = make_schedule(OptimizerConfig(**found["optimizer"]), found["steps"])
        except InputError as error:
            raise ValueError(str(error)) from error  # the option is not the user's
        now = make_schedule(self._config.optimizer, self._config.steps)
        steps = np.arange(done)
        return np.array_equal(before(steps), now(steps))


def _lock(folder: Path) -> int:
    """Takes the folder's lock, which the system releases however this process ends; returns its open file."""
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 1000).decode(errors="replace") or "another process"
            os.close(file)
            raise InputError(f"--run {folder} is in use by {owner}; wait for it, or give another folder") from None
        except OSError as error:  # some network file systems have no locks
            warn(f"{path} cannot be locked ({error.strerror}): start no second process on it")
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:  # else its owner removed it just now
            break
        os.close(file)
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


@contextlib.contextmanager
def exporting(run: Path) -> Iterator[Path]:
    """Gives a folder to write the export to, which takes the place of `run/export` once it is whole."""
    export, draft, old = (run / name for name in ("export", "export.tmp", "export.old"))
    for left in (draft, old):
        shutil.rmtree(left, ignore_errors=True)  # what a kill left
    draft.mkdir()
    yield draft
    if export.exists():
        export.rename(old)
    draft.rename(export)
    shutil.rmtree(old, ignore_errors=True)


def _start_from(folder: Path) -> str:
    return f"--model {folder / 'export'} starts a new run from the weights of one that has ended"


def _among(name: str, options: tuple[str, ...]) -> bool:
    return any(name == option or name.startswith(f"{option}.") for option in options)


def _option(name: str) -> str:
    return printed(f"--{name.replace('_', '-')}") if name != "job" else "the job"


def _as_json(job: str, config: JobConfig) -> dict[str, Any]:
    fields = {"job": job, **dataclasses.asdict(config)}
    return json.loads(json.dumps(fields, default=str))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
