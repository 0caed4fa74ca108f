"""The mesh, the one table of sharding rules, and what follows from both."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.errors import InputError
from train.options import LARGEST, Count, Range, check_options

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

# Logical axis -> mesh axes. Activations leave their width unnamed, so `embed` shards parameters alone.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("length", "sequence"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged; the product of the four is the number of devices."""

    data: Annotated[int, Range(1, LARGEST, also=(-1,))] = -1
    """Copies of the parameters, each with a share of the batch; -1: as many as the other axes leave."""
    fsdp: Count = 1
    """Shares of parameters and optimizer state, gathered where they are used; they split the batch too."""
    tensor: Count = 1
    """Shares of heads, feed-forward width and vocabulary."""
    sequence: Count = 1
    """Shares of the positions of a row."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices, or over those given.

    Raises:
        InputError: an axis is below 1, or the axes do not multiply to the number of devices.
    """
    check_options(config, "--mesh.")
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor, config.sequence]
    options = " ".join(f"--mesh.{name} {size}" for name, size in zip(MESH_AXES, sizes, strict=True))
    others = math.prod(sizes[1:])
    if sizes[0] == -1:
        sizes[0] = max(1, len(devices) // others)
    if math.prod(sizes) != len(devices):
        raise InputError(
            f"{options} makes {math.prod(sizes)} devices, but there are {len(devices)}: "
            "the product of the axes must be the number of devices"
        )
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises InputError unless every device has as many rows of each part of a batch."""
    parts = row_shards(mesh) * accumulate
    if batch_size % parts:
        raise InputError(
            f"--batch-size {batch_size} must be a multiple of {parts}: "
            f"the mesh splits it {row_shards(mesh)} ways and --accumulate {accumulate} times"
        )


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Rows, the first axis, over data and fsdp; positions, the last one, over sequence where it divides them."""
    last = "sequence" if shape[-1] % mesh.shape["sequence"] == 0 else None
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *[None] * (len(shape) - 2), *[last] * (len(shape) > 1)))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> the global arrays."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, rows.shape), rows)
        for name, rows in batch.items()
    }


def gather(x: jax.Array) -> np.ndarray:
    """The whole array on the host, in every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def parameter_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """Logical axes of each parameter -> its NamedSharding.

    A dimension that its mesh axis does not divide (30,522 words over 4 devices) stays whole.

    Raises:
        ValueError: a parameter names an axis that no rule covers, or two of its dimensions meet on one mesh axis.
    """

    def sharding(path: Any, shape: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(jax.tree_util.keystr(path), axes, shape.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, shapes, axes)


def partition_spec(name: str, axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of one parameter by RULES; see `parameter_shardings`."""
    rules = dict(RULES)
    if unknown := [axis for axis in axes if axis is not None and axis not in rules]:
        raise ValueError(f"parameter {name}: no rule in train/sharding.py covers the logical axes {unknown}")
    spec = [None if axis is None else rules[axis] for axis in axes]
    used = [axis for entry in spec if entry for axis in ([entry] if isinstance(entry, str) else entry)]
    if len(used) != len(set(used)):
        raise ValueError(f"parameter {name}: axes {tuple(axes)} put two dimensions on one mesh axis, {spec}")

    def shards(entry: str | tuple[str, ...] | None) -> int:
        return math.prod(mesh.shape[axis] for axis in ([entry] if isinstance(entry, str) else entry or ()))

    return PartitionSpec(
        *(entry if size % shards(entry) == 0 else None for entry, size in zip(spec, shape, strict=True))
    )


def state_shardings(shapes: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer state: what mirrors a parameter lies as it does, everything else is replicated.

    A leaf mirrors the parameter whose path ends its own path and whose shape it has.

    Args:
        shapes: the optimizer state as ShapeDtypeStructs.
        params: the parameters' ShapeDtypeStructs with shardings.
    """
    by_path = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            mirrored = by_path.get(names[start:])
            if mirrored is not None and mirrored.shape == leaf.shape:
                return mirrored.sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
