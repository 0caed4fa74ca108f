"""Batches whose rows are split over several devices."""

import contextlib
import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer_jax.checks import require, shown

ROWS = "rows"  # the one axis of the meshes made here

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Devices:
    """What batches are computed on: the default device, or all of a mesh, each of which has a part of the rows.

    Attributes:
        mesh: of the one axis `ROWS`.
    """

    mesh: Mesh | None = None

    @classmethod
    def of(cls, mesh: Mesh | None) -> "Devices":
        """All devices of a mesh, whatever its axes are; None for the default device.

        Raises:
            ValueError: it is no mesh, or has devices of other processes.
        """
        if mesh is None:
            return cls()
        require(isinstance(mesh, Mesh), f"mesh must be a jax.sharding.Mesh or None, not {shown(mesh)}")
        devices = [*mesh.devices.flat]
        others = sum(device.process_index != jax.process_index() for device in devices)
        require(not others, f"mesh has {others} devices of other processes: give this one's, mesh.local_mesh")
        return cls(Mesh(np.array(devices), (ROWS,), axis_types=(AxisType.Auto,)))

    @property
    def parts(self) -> int:
        """Into how many parts rows are split: what their number is a multiple of."""
        return 1 if self.mesh is None else self.mesh.size

    def split(self, arrays: Tree) -> Tree:
        """Arrays with a row a sentence, on the devices that have them."""
        return arrays if self.mesh is None else jax.device_put(arrays, NamedSharding(self.mesh, PartitionSpec(ROWS)))

    def copied(self, arrays: Tree) -> Tree:
        """Arrays that every device has whole, such as parameters."""
        return arrays if self.mesh is None else jax.device_put(arrays, NamedSharding(self.mesh, PartitionSpec()))

    def in_use(self) -> contextlib.AbstractContextManager[Any]:
        """Within it nothing is split over another mesh that is set."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
