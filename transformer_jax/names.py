"""PyTorch's tensors by name <-> our parameters by path, through one table of names, strict both ways.

A table has a row for each parameter: its path ("encoder/layer_{i}/mlp/up/kernel", {i} counts layers) and the names of
the tensors that it is made of. Several tensors are joined along the axis that fuses them (queries, keys, values).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from transformer_jax.checkpoints import check_shapes, to_float32
from transformer_jax.checks import listed, printed, require
from transformer_jax.stack import unstack_layers

Table = Mapping[str, tuple[str, ...]]
Flat = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def rows_of(table: Table, paths: Iterable[str], root: str = "") -> dict[str, tuple[str, ...]]:
    """Each path of a model with the names of its tensors; a table's paths are without `root`."""
    rows = {}
    for path in paths:
        parts = path.removeprefix(root).split("/")
        layer = next((part.removeprefix("layer_") for part in parts if part.startswith("layer_")), "")
        pattern = "/".join("layer_{i}" if part.startswith("layer_") else part for part in parts)
        rows[path] = tuple(name.replace("{i}", layer) for name in table[pattern])
    return rows


def drop_copies(tensors: Flat, copies: Mapping[str, str], source: str, reason: str) -> None:
    """Takes out copies of other tensors (copy -> original), or puts one in the place of an original that is missing.

    Raises:
        ValueError: a copy differs from its original; `reason` says why it must not.
    """
    for copy, original in copies.items():
        if copy in tensors:
            duplicate = tensors.pop(copy)
            same = np.array_equal(tensors.setdefault(original, duplicate), duplicate)
            require(same, f"{source}: {copy} differs from {original}, {reason}")


def from_torch(tensors: Flat, rows: Table, shapes: Shapes, source: str) -> Flat:
    """PyTorch's tensors -> path -> array: every tensor is used, and every row is found.

    Args:
        tensors: float32, see `to_float32`.
        rows: of each parameter that is wanted.
        shapes: of these parameters, and perhaps of others.
        source: where the tensors come from, for messages.

    Raises:
        ValueError: missing or unexpected names, or wrong shapes. It names them.
    """
    right = {name: _torch_shape(path, shapes[path], len(names)) for path, names in rows.items() for name in names}
    missing = [f"{printed(name, 80)} {right[name]}" for name in sorted(right.keys() - tensors.keys())]
    unexpected = [f"{printed(name, 80)} {tensors[name].shape}" for name in sorted(tensors.keys() - right.keys())]
    also = f", and has {len(unexpected)} that are unexpected: {listed(unexpected)}" if unexpected else ""
    require(not missing, f"{source} lacks {len(missing)} tensors: {listed(missing)}{also}")
    require(not unexpected, f"{source} has {len(unexpected)} unexpected tensors: {listed(unexpected)}")
    found = {name: tensors[name].shape for name in right}
    wrong = [f"{name} is {found[name]}, not {shape}" for name, shape in right.items() if found[name] != shape]
    require(not wrong, f"{source} does not fit its config.json: {listed(wrong)}")
    return {path: _from_torch(path, [tensors[name] for name in names], shapes[path]) for path, names in rows.items()}


def checked_arrays(params: Mapping[str, Any], shapes: Shapes) -> Flat:
    """Parameters, in the canonical layout or in that of `scan_layers` -> path -> float32 array.

    Raises:
        ValueError: names or shapes are not exactly those of `shapes`, or parameters are not floating-point numbers
            or not finite. It names them.
    """
    require(isinstance(params, Mapping), f"parameters are a dict of arrays, not {type(params).__name__}")
    flat = flax.traverse_util.flatten_dict(unstack_layers(dict(params)), sep="/")
    found = {path: tuple(np.shape(leaf)) for path, leaf in flat.items()}
    check_shapes(found, shapes, "the parameters are not those of this model")
    return to_float32({path: np.asarray(jax.device_get(leaf)) for path, leaf in flat.items()}, "the parameters")


def to_torch(arrays: Flat, rows: Table) -> Flat:
    """Parameters by path -> PyTorch's tensors by name."""
    tensors = {}
    for path, names in rows.items():
        for name, tensor in zip(names, _to_torch(path, arrays[path], len(names)), strict=True):
            tensors[name] = np.ascontiguousarray(tensor)
    return tensors


# --- arrays ------------------------------------------------------------------------------------------------------

# PyTorch keeps matrices as [out, in]; ours are [in ..., out ...] with heads on an axis of their own. Only the
# projection behind attention has two input axes, [H, K, D].


def _matrix_shape(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    inputs = 2 if path.endswith("attention/out/kernel") else 1
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def _torch_shape(path: str, shape: tuple[int, ...], names: int) -> tuple[int, ...]:
    """The shape of each of the `names` tensors that a parameter is made of."""
    if path.endswith("kernel"):
        rows, columns = _matrix_shape(path, shape)
        return (columns // names, rows)
    return (math.prod(shape) // names,) if path.endswith("bias") else shape


def _from_torch(path: str, tensors: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """PyTorch's tensors -> the parameter."""
    parts = [tensor.T if path.endswith("kernel") else tensor for tensor in tensors]
    return np.concatenate(parts, axis=-1).reshape(shape)


def _to_torch(path: str, array: np.ndarray, names: int) -> list[np.ndarray]:
    """The parameter -> PyTorch's tensors."""
    if path.endswith("kernel"):
        return np.split(array.reshape(_matrix_shape(path, array.shape)).T, names)
    return np.split(array.reshape(-1), names) if path.endswith("bias") else [array]
