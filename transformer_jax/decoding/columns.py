"""Short lists of a vocabulary (Jean et al. 2015, section 3.4): logits that have a column for each of a few words."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from transformer_jax.checks import concrete, require


class Columns(NamedTuple):
    """What the columns of logits stand for, where they are not the whole vocabulary. Ids stay ids everywhere else.

    Attributes:
        ids_N: the id of each column.
        of_V: the column of each id; N for one that has none.
    """

    ids_N: Array
    of_V: Array

    @classmethod
    def of(cls, ids_N: ArrayLike, vocabulary: int) -> "Columns":
        """Of ids that differ."""
        ids_N = jnp.asarray(ids_N, jnp.int32)
        ids = concrete(ids_N)
        if ids is not None:
            fits = len(np.unique(ids)) == len(ids) > 0 and ids.min() >= 0 and ids.max() < vocabulary
            require(fits, f"a short list is of ids below {vocabulary} that differ, not {ids}")
        N = len(ids_N)
        return cls(ids_N, jnp.full(vocabulary, N, jnp.int32).at[ids_N].set(jnp.arange(N, dtype=jnp.int32)))


def ids_of(columns: Columns | None, at: Array) -> Array:
    """The ids of columns."""
    return at if columns is None else jnp.take(columns.ids_N, at)


def column_of(columns: Columns | None, ids: Array) -> Array:
    """The columns of ids; past the last one for ids that have none."""
    return ids if columns is None else jnp.take(columns.of_V, ids)
