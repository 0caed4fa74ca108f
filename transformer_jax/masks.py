"""What may attend to what, kept as the few facts that kernels understand."""

import flax.struct
import jax.numpy as jnp
from jax import Array

from transformer_jax.checks import require


@flax.struct.dataclass
class AttentionMask:
    """Which keys a query attends to (True = attend); made dense only where a kernel needs it.

    Build one with `padding`, `lengths`, `causal` or `segments`, and combine them with `&`.

    Attributes:
        key_mask_BS: boolean, True for keys that exist.
        key_lengths_B: number of keys that exist, for keys padded on the right.
        query_segments_BL, key_segments_BS: only equal segments attend to each other.
        offset: position of the first query among the keys, for causal masks over a cache.
        is_causal: a query attends to keys at its own position and before.
    """

    key_mask_BS: Array | None = None
    key_lengths_B: Array | None = None
    query_segments_BL: Array | None = None
    key_segments_BS: Array | None = None
    offset: Array | int = 0
    is_causal: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def padding(cls, attention_mask_BS: Array) -> "AttentionMask":
        """From the usual attention mask: 1 or True for tokens, 0 or False for padding, anywhere in the row."""
        return cls(key_mask_BS=attention_mask_BS.astype(bool))

    @classmethod
    def lengths(cls, key_lengths_B: Array) -> "AttentionMask":
        """Keys padded on the right: the first `key_lengths_B` of each row exist."""
        return cls(key_lengths_B=key_lengths_B)

    @classmethod
    def causal(cls, offset: Array | int = 0) -> "AttentionMask":
        """Query i, at position offset + i, attends to keys 0 .. offset + i."""
        return cls(is_causal=True, offset=offset)

    @classmethod
    def segments(cls, query_BL: Array, key_BS: Array | None = None) -> "AttentionMask":
        """Packed rows: a query attends to keys of its own segment; self-attention without `key_BS`."""
        return cls(query_segments_BL=query_BL, key_segments_BS=query_BL if key_BS is None else key_BS)

    def __and__(self, other: "AttentionMask | None") -> "AttentionMask":
        """Attend where both allow it. Raises ValueError where both carry segments or causal offsets."""
        if other is None:
            return self
        clash = self.query_segments_BL is not None and other.query_segments_BL is not None
        require(not clash, "two masks with segments cannot be combined: combine the segment ids instead")
        require(not (self.is_causal and other.is_causal), "two causal masks cannot be combined")
        return AttentionMask(
            key_mask_BS=_either(self.key_mask_BS, other.key_mask_BS, jnp.logical_and),
            key_lengths_B=_either(self.key_lengths_B, other.key_lengths_B, jnp.minimum),
            query_segments_BL=_either(self.query_segments_BL, other.query_segments_BL),
            key_segments_BS=_either(self.key_segments_BS, other.key_segments_BS),
            offset=self.offset if self.is_causal else other.offset,
            is_causal=self.is_causal or other.is_causal,
        )

    def dense(self, length: int, keys: int) -> Array | None:
        """Boolean [B or 1, 1, L or 1, S] for L = length and S = keys; None if everything attends to everything."""
        parts = []
        if self.key_mask_BS is not None:
            parts.append(self.key_mask_BS[:, None, None, :])
        if self.key_lengths_B is not None:
            parts.append((jnp.arange(keys)[None, :] < self.key_lengths_B[:, None])[:, None, None, :])
        if self.query_segments_BL is not None and self.key_segments_BS is not None:
            same_BLS = self.query_segments_BL[:, :, None] == self.key_segments_BS[:, None, :]
            parts.append(same_BLS[:, None])
        if self.is_causal:
            at_L = jnp.arange(length) + self.offset
            parts.append((jnp.arange(keys)[None, :] <= at_L[:, None])[None, None])
        if not parts:
            return None
        mask = parts[0]
        for part in parts[1:]:
            mask = mask & part
        return mask


def _either(a, b, both=None):
    if a is None or b is None:
        return b if a is None else a
    return both(a, b)
