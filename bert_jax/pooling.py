"""From the vectors of a text's tokens to one vector of the text (Reimers and Gurevych 2019, section 3)."""

from typing import Any

import jax.numpy as jnp
from jax import Array


def pool(x_BLD: Array, attention_mask: Any, pooling: tuple[str, ...], normalize: bool) -> Array:
    """Float32 vectors [B, D], or [B, n D] of n poolings, which are joined in the order of `POOLS`.

    Args:
        attention_mask: [B, L], not 0 for tokens; each row has one at least.
        pooling: names in `POOLS`.
        normalize: whether vectors are brought to the length 1.
    """
    x_BLD = x_BLD.astype(jnp.float32)
    mask_BL1 = jnp.asarray(attention_mask != 0)[:, :, None]
    vectors_BD = jnp.concatenate([of(x_BLD, mask_BL1) for name, of in POOLS.items() if name in pooling], axis=-1)
    if not normalize:
        return vectors_BD
    return vectors_BD / jnp.maximum(jnp.linalg.norm(vectors_BD, axis=-1, keepdims=True), 1e-12)


def _sum(x_BLD: Array, mask_BL1: Array) -> Array:
    return jnp.sum(jnp.where(mask_BL1, x_BLD, 0), axis=1)


def _count(mask_BL1: Array) -> Array:
    return jnp.sum(mask_BL1, axis=1).astype(jnp.float32)


POOLS = {
    "cls": lambda x_BLD, mask_BL1: x_BLD[:, 0],
    "max": lambda x_BLD, mask_BL1: jnp.max(jnp.where(mask_BL1, x_BLD, -jnp.inf), axis=1),
    "mean": lambda x_BLD, mask_BL1: _sum(x_BLD, mask_BL1) / _count(mask_BL1),
    "mean_sqrt_len": lambda x_BLD, mask_BL1: _sum(x_BLD, mask_BL1) / jnp.sqrt(_count(mask_BL1)),
}
