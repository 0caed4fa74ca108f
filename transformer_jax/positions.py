"""Sinusoidal and learned positions, and the hierarchical extension of a learned table."""

from typing import Annotated, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from transformer_jax.checks import Positions, Range, Width, as_array, check_value, require
from transformer_jax.layers import Embed

SinusoidLayout = Literal["interleaved", "halves"]


def sinusoidal_positions(length: int, features: int, layout: SinusoidLayout = "interleaved") -> np.ndarray:
    """The fixed table of Vaswani et al. 2017, section 3.5: float32 [length, features], exact to float32.

    `interleaved` is the paper's: sin(p / 10000^(2i/D)) in even and the cosine in odd columns. `halves` is that of
    Marian in Hugging Face's layout: the same sines first, then the cosines.
    It is defined past any training length, but models do not generalise there (Press et al. 2022).
    """
    check_value("length", length, Positions)
    check_value("features", features, Width)
    check_value("layout", layout, SinusoidLayout)
    require(features % 2 == 0, f"sinusoidal positions need an even width, not {features}")
    angles = np.arange(length, dtype=np.float64)[:, None] * _frequencies(features)
    pair = np.stack([np.sin(angles), np.cos(angles)], axis=-1 if layout == "interleaved" else 1)
    return pair.reshape(length, features).astype(np.float32)


def _frequencies(features: int) -> np.ndarray:
    """Radians a position, float64, of each sine and its cosine; an odd width has a last sine alone."""
    return 10000.0 ** (-np.arange(0, features, 2, dtype=np.float64) / features)


def hierarchical_positions(table_PD: Array, rows: int | None = None, alpha: float = 0.4) -> Array:
    """Extends a learned table of n positions to as many as n^2 without new parameters (Su 2020).

    With `u = (p - alpha * p[0]) / (1 - alpha)` row i*n + j is `alpha * u[i] + (1 - alpha) * u[j]`.
    Rows 0 .. n-1 are those of the table, bit for bit.

    Args:
        table_PD: the learned table [n, D].
        rows: how many rows to materialise, n^2 by default.
        alpha: weight of the coarse position; 0.5 would make i*n + j and j*n + i the same.

    Raises:
        ValueError: this is no table of floating-point numbers, alpha is 0.5 or not between 0 and 1, or more than n^2
            rows are asked for.
    """
    table_PD = jnp.asarray(as_array("a table of positions", table_PD))
    kind, size = table_PD.dtype, table_PD.shape
    fits = len(size) == 2 and 0 not in size and jnp.issubdtype(kind, jnp.floating)
    require(fits, f"a table of positions must be floating-point [positions, features], not {kind} {[*size]}")
    n = table_PD.shape[0]
    rows = n * n if rows is None else rows
    check_value("alpha", alpha, Annotated[float, Range(0, 1, open_low=True, open_high=True)])
    require(alpha != 0.5, "alpha must not be 0.5: positions i*n + j and j*n + i would be the same")
    check_value("rows", rows, int)
    require(0 < rows <= n * n, f"a table of {n} positions reaches {n * n} of them, not {rows}")
    base_PD = (table_PD - alpha * table_PD[:1]) / (1 - alpha)
    at = np.arange(n, rows)
    beyond = alpha * base_PD[at // n] + (1 - alpha) * base_PD[at % n]
    return jnp.concatenate([table_PD[:rows], beyond])


class LearnedPositions(Embed):
    """A learned table [P, D], one row a position.

    To reach past its training length, materialise a longer table with `hierarchical_positions`, and put it into
    the parameters of a model whose configuration asks for that many positions.

    Attributes:
        sinusoid_range: the table begins as sinusoids of this root mean square, not at random. From those a layer can
            tell neighbours at once, as the products of two rows depend on their distance alone; a model whose table is
            drawn at random has to find that out first, and predicts by word frequencies until then.
    """

    rows: str | None = None
    sinusoid_range: float | None = None

    @nn.nowrap
    def initial_table(self, key: Array, shape: tuple[int, int], dtype: DTypeLike) -> Array:
        if self.sinusoid_range is None:
            return super().initial_table(key, shape, dtype)
        positions, features = shape
        # Traced, and not the exact table: a shape alone is asked for too, and a long table would be a large constant.
        angles_PF = jnp.outer(jnp.arange(positions), jnp.asarray(_frequencies(features), jnp.float32))
        table_PD = jnp.stack([jnp.sin(angles_PF), jnp.cos(angles_PF)], axis=-1).reshape(positions, -1)[:, :features]
        return jnp.asarray(table_PD * (2**0.5 * self.sinusoid_range), dtype)  # the mean square of sinusoids is a half
