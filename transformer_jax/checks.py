"""What is refused, and how: conditions, ids and numbers that are looked at wherever their values are at hand."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds: how everything here checks itself."""
    if not condition:
        raise ValueError(message)


def concrete(x: Any) -> np.ndarray | None:
    """The values of an array, or None where this process cannot see them: under `jit`, or on other hosts."""
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)


def check_ids(name: str, ids: Any, size: int, table: str) -> None:
    """Checks that ids are integers below `size`, the rows of `table`; their values only where they are at hand.

    Raises:
        ValueError: another dtype, or ids below 0 or from `size` up; it says how many, and the first one.
    """
    dtype = np.result_type(ids)
    require(np.issubdtype(dtype, np.integer), f"{name} must be integers, not {dtype}")
    values = concrete(ids)
    if values is None:
        return
    wrong = values[(values < 0) | (values >= size)]
    require(
        wrong.size == 0,
        f"{name} must lie between 0 and {size - 1} ({table}): {wrong.size} of {values.size} do not, such as "
        f"{wrong[0] if wrong.size else ''}",
    )


def check_finite(tensors: Mapping[str, Any], where: str) -> None:
    """Checks that arrays by name hold no nan and no infinity.

    Raises:
        ValueError: some do; it names them.
    """
    wrong = sorted(name for name, values in tensors.items() if not np.isfinite(values).all())
    require(not wrong, f"{where}: not finite (nan or infinity) in {len(wrong)} tensors: {listed(wrong)}")


def listed(names: list[str], count: int = 5) -> str:
    """The first few of many names."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
