"""A model's folder on disk: `config.json` and `model.safetensors`, written whole or not at all."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from transformer_jax.checks import check_finite, listed, printed, require, shown


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


def save_folder(folder: str | Path, config: dict[str, Any], params: Any, shapes: Any) -> None:
    """Writes a configuration and parameters: paths joined by dots, float32.

    Raises:
        ValueError: names or shapes are not those of the tree `shapes`, or values are not floating-point numbers or not
            finite; nothing is written.
    """
    folder = Path(folder)
    flat = flax.traverse_util.flatten_dict(params, sep=".")
    check_shapes(shapes_by_name(flat), shapes_by_name(shapes), "the parameters are not the model's")
    tensors = to_float32({name: np.asarray(leaf) for name, leaf in flat.items()}, f"not written to {folder}")
    content = safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, {"model.safetensors": content, "config.json": text.encode()})


def read_config(folder: str | Path) -> dict[str, Any]:
    """The folder's config.json. Raises ValueError where it is absent, or as `read_json`."""
    path = Path(folder) / "config.json"
    require(path.is_file(), f"{path} does not exist: a model folder holds config.json and model.safetensors")
    return read_json(path)


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON object, or list, in a file.

    Raises:
        ValueError: it cannot be read, or is not such JSON: neither are NaN, Infinity, a key that is there twice,
            integers of more than 20 digits, and objects nested deeper than Python can follow.
    """
    try:
        value = json.loads(
            path.read_bytes().decode(), object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer
        )
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON: it is nested too deeply") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    wanted = "object" if kind is dict else "list"
    require(isinstance(value, kind), f"{path} holds {type(value).__name__}, not a JSON {wanted}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    require(not twice, f"the key {shown(listed(twice))} is there more than once")
    return dict(pairs)


def _constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _integer(digits: str) -> int:
    require(len(digits) <= 20, f"an integer of {len(digits)} digits")
    return int(digits)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name. Raises ValueError where it is absent or damaged."""
    require(path.is_file(), f"{path} does not exist: a model folder holds config.json and model.safetensors")
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {printed(error)}") from error


def to_float32(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Weights of any floating type as float32.

    Raises:
        ValueError: some are no floating-point numbers, or not finite, or overflow float32. It names them.
    """
    other = sorted(f"{n} ({t.dtype})" for n, t in tensors.items() if not jnp.issubdtype(t.dtype, jnp.floating))
    require(not other, f"{source}: weights must be floating-point numbers, but {listed(other)} are not")
    with np.errstate(over="ignore"):
        weights = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    check_finite(weights, f"{source}: weights must fit float32")
    return weights


def shapes_by_name(tree: Any, sep: str = ".") -> dict[str, tuple[int, ...]]:
    """The shapes of a tree of arrays, or of shapes, by the path of each."""
    return {name: tuple(np.shape(leaf)) for name, leaf in flax.traverse_util.flatten_dict(tree, sep=sep).items()}


def check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Checks shapes by name: exactly the same names and shapes.

    Raises:
        ValueError: it says how many differ, and how the first few do.
    """
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    listing = listed([f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'known')}" for name in wrong])
    require(not wrong, f"{where} in {len(wrong)} parameters: {listing}")


def read_params(folder: str | Path, shapes: Any) -> dict[str, Any]:
    """The folder's parameters as a tree like `shapes`, whose names and shapes must be exactly those of the file."""
    path = Path(folder) / "model.safetensors"
    flat = read_tensors(path)
    check_shapes(shapes_by_name(flat), shapes_by_name(shapes), f"{path} does not fit its config.json")
    weights = {name: jnp.asarray(tensor) for name, tensor in to_float32(flat, str(path)).items()}
    return flax.traverse_util.unflatten_dict(weights, sep=".")
