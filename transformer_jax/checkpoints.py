"""A model's folder on disk: `config.json` and `model.safetensors`, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from transformer_jax.layers import require


def write_file(path: Path, content: bytes) -> None:
    """One file, as `write_files`."""
    write_files(path.parent, {path.name: content})


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files under other names first, so that nobody ever sees half of one, or some of them alone."""
    drafts = {name: folder / f"{name}.tmp" for name in files}
    try:
        for name, content in files.items():
            drafts[name].write_bytes(content)
        for name, draft in drafts.items():
            draft.replace(folder / name)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def save_folder(folder: str | Path, config: dict[str, Any], params: dict[str, Any]) -> None:
    """Writes a configuration and parameters: paths joined by dots, float32."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = flax.traverse_util.flatten_dict(params, sep=".")
    tensors = {name: np.ascontiguousarray(np.asarray(leaf, np.float32)) for name, leaf in flat.items()}
    text = json.dumps(config, indent=2) + "\n"
    write_files(folder, {"model.safetensors": safetensors.numpy.save(tensors), "config.json": text.encode()})


def read_config(folder: str | Path) -> dict[str, Any]:
    """The folder's config.json. Raises ValueError where it is absent or is not a JSON object."""
    path = Path(folder) / "config.json"
    require(path.is_file(), f"{path} does not exist: a model folder holds config.json and model.safetensors")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    require(isinstance(config, dict), f"{path} holds {type(config).__name__}, not a JSON object")
    return config


def read_params(folder: str | Path, shapes: dict[str, Any]) -> dict[str, Any]:
    """The folder's parameters as a tree like `shapes`, whose names and shapes must be exactly those of the file."""
    path = Path(folder) / "model.safetensors"
    require(path.is_file(), f"{path} does not exist: a model folder holds config.json and model.safetensors")
    try:
        flat = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    wanted = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep=".").items()}
    found = {name: leaf.shape for name, leaf in flat.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    listed = ", ".join(f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'known')}" for name in wrong[:5])
    require(not wrong, f"{path} does not fit its config.json in {len(wrong)} parameters: {listed}")
    return jax.tree.map(jax.numpy.asarray, flax.traverse_util.unflatten_dict(flat, sep="."))
