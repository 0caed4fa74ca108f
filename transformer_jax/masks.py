"""What may attend to what, kept as the few facts that kernels understand."""

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array

from transformer_jax.checks import as_array, as_ids, concrete, require


@flax.struct.dataclass
class AttentionMask:
    """Which keys a query attends to (True = attend); made dense only where a kernel needs it.

    Build one with `padding`, `lengths`, `causal` or `segments`, and combine them with `&`. Batches are never broadcast:
    a mask has as many rows as what attends by it.

    Attributes:
        key_mask_BS: boolean, True for keys that exist.
        key_lengths_B: number of keys that exist, for keys padded on the right.
        query_segments_BL, key_segments_BS: only equal segments attend to each other.
        query_mask_BLS: boolean, True for keys that a query may attend to, as in a cache that several beams share.
        offset: position of the first query among the keys, for causal masks over a cache.
        is_causal: a query attends to keys at its own position and before.
    """

    key_mask_BS: Array | None = None
    key_lengths_B: Array | None = None
    query_segments_BL: Array | None = None
    key_segments_BS: Array | None = None
    query_mask_BLS: Array | None = None
    offset: Array | int = 0
    is_causal: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def padding(cls, attention_mask: Any, shape: tuple[int, ...] | None = None) -> "AttentionMask":
        """From the usual attention mask [B, S]: 1 or True for tokens, 0 or False for padding, anywhere in the row.

        Booleans or numbers; lists of lists are converted. Under `jit`, where values cannot be seen, integers count as
        tokens where they are exactly 1, and floating-point numbers are refused.

        Args:
            shape: that of the ids which the mask goes with, if they are at hand.

        Raises:
            ValueError: another rank, dtype or shape, or values (where they are at hand) other than 0 and 1, such as
                those of an additive mask.
        """
        return cls(key_mask_BS=_booleans(attention_mask, shape))

    @classmethod
    def lengths(cls, key_lengths_B: Any) -> "AttentionMask":
        """Keys padded on the right: the first `key_lengths_B` of each row exist."""
        mask = cls(key_lengths_B=as_array("key_lengths_B", key_lengths_B))
        mask.check()
        return mask

    @classmethod
    def causal(cls, offset: Array | int = 0) -> "AttentionMask":
        """Query i, at position offset + i, attends to keys 0 .. offset + i."""
        mask = cls(is_causal=True, offset=offset)
        mask.check()
        return mask

    @classmethod
    def segments(cls, query_BL: Any, key_BS: Any = None) -> "AttentionMask":
        """Packed rows: a query attends to keys of its own segment; self-attention without `key_BS`."""
        query_BL = as_ids("query_segments_BL", query_BL)
        key_BS = query_BL if key_BS is None else as_ids("key_segments_BS", key_BS)
        return cls(query_segments_BL=query_BL, key_segments_BS=key_BS)

    def check(self, batch: int | None = None, length: int | None = None, keys: int | None = None) -> None:
        """Checks dtypes and shapes against a batch B, L queries and S keys, as far as they are given.

        It is called wherever a mask is used: the dataclass can be made by hand, and JAX makes it of anything.

        Raises:
            ValueError: a key mask that is not boolean, lengths, segments or offset that are not integers, shapes that
                do not fit, or, where values are at hand, lengths beyond the keys or an offset below 0.
        """
        for name, kind, wanted in (
            ("key_mask_BS", jnp.bool_, (batch, keys)),
            ("key_lengths_B", jnp.integer, (batch,)),
            ("query_segments_BL", jnp.integer, (batch, length)),
            ("key_segments_BS", jnp.integer, (batch, keys)),
            ("query_mask_BLS", jnp.bool_, (batch, length, keys)),
            ("offset", jnp.integer, ()),
        ):
            if getattr(self, name) is None:
                continue
            value = as_array(name, getattr(self, name))
            dtype, shape = value.dtype, value.shape
            kinds = "booleans (see AttentionMask.padding)" if kind is jnp.bool_ else "integers"
            require(jnp.issubdtype(dtype, kind), f"AttentionMask: {name} must be {kinds}, not {dtype}")
            fits = len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))
            wanted_words = ", ".join("any" if n is None else str(n) for n in wanted)
            require(fits, f"AttentionMask: {name} must have the shape [{wanted_words}], not {[*shape]}")
        halves = (self.query_segments_BL is None) == (self.key_segments_BS is None)
        require(halves, "AttentionMask: segments of queries and keys go together, but only one of them is given")
        for name, highest in (("key_lengths_B", keys), ("offset", None)):
            values = concrete(0 if getattr(self, name) is None else getattr(self, name))
            if values is not None and values.size:
                inside = values.min() >= 0 and (highest is None or values.max() <= highest)
                limit = "up" if highest is None else f"to {highest}"
                require(inside, f"AttentionMask: {name} must lie from 0 {limit}, not {values.min()} to {values.max()}")

    def __and__(self, other: "AttentionMask | None") -> "AttentionMask":
        """Attend where both allow it. Raises ValueError where both carry segments or causal offsets."""
        if other is None:
            return self
        check_mask(other)
        self.check()
        other.check()
        clash = self.query_segments_BL is not None and other.query_segments_BL is not None
        require(not clash, "two masks with segments cannot be combined: combine the segment ids instead")
        require(not (self.is_causal and other.is_causal), "two causal masks cannot be combined")
        return AttentionMask(
            key_mask_BS=_either(self.key_mask_BS, other.key_mask_BS, jnp.logical_and),
            key_lengths_B=_either(self.key_lengths_B, other.key_lengths_B, jnp.minimum),
            query_segments_BL=_either(self.query_segments_BL, other.query_segments_BL),
            key_segments_BS=_either(self.key_segments_BS, other.key_segments_BS),
            query_mask_BLS=_either(self.query_mask_BLS, other.query_mask_BLS, jnp.logical_and),
            offset=self.offset if self.is_causal else other.offset,
            is_causal=self.is_causal or other.is_causal,
        )

    def dense(self, length: int, keys: int) -> Array | None:
        """Boolean [B or 1, 1, L or 1, S] for L = length and S = keys; None if everything attends to everything."""
        self.check(None, length, keys)
        parts = []
        if self.key_mask_BS is not None:
            parts.append(self.key_mask_BS[:, None, None, :])
        if self.key_lengths_B is not None:
            parts.append((jnp.arange(keys)[None, :] < self.key_lengths_B[:, None])[:, None, None, :])
        if self.query_segments_BL is not None and self.key_segments_BS is not None:
            same_BLS = self.query_segments_BL[:, :, None] == self.key_segments_BS[:, None, :]
            parts.append(same_BLS[:, None])
        if self.query_mask_BLS is not None:
            parts.append(self.query_mask_BLS[:, None])
        if self.is_causal:
            at_L = jnp.arange(length) + self.offset
            parts.append((jnp.arange(keys)[None, :] <= at_L[:, None])[None, None])
        if not parts:
            return None
        mask = parts[0]
        for part in parts[1:]:
            mask = mask & part
        return mask

    def of_queries(self, start: Array | int, length: int) -> "AttentionMask":
        """The mask of queries start .. start + length - 1 alone; past the last one it means nothing."""
        at_L = start + jnp.arange(length)
        rows: dict[str, Any] = {
            name: jnp.take(value, at_L, axis=1, mode="clip")
            for name in ("query_segments_BL", "query_mask_BLS")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **rows, offset=self.offset + start)


def check_mask(mask: Any) -> None:
    """Raises ValueError unless this is an AttentionMask or None: a raw array does not say what it means."""
    require(
        mask is None or isinstance(mask, AttentionMask),
        f"mask must be an AttentionMask, not {type(mask).__name__}: wrap an array [B, S] of 1 for tokens and 0 for "
        "padding in AttentionMask.padding(...), lengths in AttentionMask.lengths(...)",
    )


def _booleans(mask: Any, shape: tuple[int, ...] | None) -> Array:
    mask = as_array("attention_mask", mask)
    wanted = "[rows, keys]" if shape is None else f"{tuple(shape)}, as the ids have"
    fits = mask.ndim == 2 and 0 not in mask.shape and (shape is None or mask.shape == tuple(shape))
    require(fits, f"attention_mask must have the shape {wanted}, not {tuple(mask.shape)}")
    if mask.dtype == bool:
        return jnp.asarray(mask)
    real = jnp.issubdtype(mask.dtype, jnp.integer) or jnp.issubdtype(mask.dtype, jnp.floating)
    require(real, f"attention_mask must be booleans or numbers, not {mask.dtype}")
    values = concrete(mask)
    if values is None:
        require(
            jnp.issubdtype(mask.dtype, jnp.integer),
            f"attention_mask must be booleans or integers under jit, not {mask.dtype}: there 1 for tokens and 0 for "
            "padding cannot be told from an additive mask; give it as booleans, True for tokens",
        )
        return jnp.asarray(mask == 1)
    wrong = values[(values != 0) & (values != 1)]
    require(
        wrong.size == 0,
        f"attention_mask must be 1 or True for tokens, which are attended to, and 0 or False for padding, not "
        f"{wrong[0] if wrong.size else ''}: an additive mask (0 and -1e9) says the opposite",
    )
    return jnp.asarray(values == 1)


def _either(a, b, both=None):
    if a is None or b is None:
        return b if a is None else a
    return both(a, b)
