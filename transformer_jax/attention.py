"""Attention: the one seam to kernels, the cache, and the multi-head layer."""

import functools
import logging
from typing import Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from transformer_jax.checks import Share, Width, check_fields, check_value, concrete, require
from transformer_jax.layers import Dropout, Projection, constrain, dropout, fold_seed
from transformer_jax.masks import AttentionMask, check_mask

log = logging.getLogger(__name__)

Implementation = Literal["auto", "xla", "blocked", "cudnn"]

# From so many scores a head (L * S) on, where no fused kernel is possible, `auto` takes them a block of queries at a
# time. Only lengths decide: by the size of the batch, whose rows may be split over a mesh or accumulated, the same
# seed would draw other dropout.
BLOCKED_FROM = 1024 * 1024
BLOCK = 128  # queries at most


# --- the seam ----------------------------------------------------------------------------------------------------


def dot_product_attention(
    q_BLHK: Array,
    k_BSHK: Array,
    v_BSHK: Array,
    mask: AttentionMask | None = None,
    *,
    dropout: Dropout | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """softmax(q k / sqrt(K)) v (Vaswani et al. 2017, section 3.2.1), [B, L, H, K] in the dtype of v.

    The softmax is computed in float32. A query whose keys are all masked attends to every key alike: finite, and
    of no meaning.

    Args:
        mask: what may attend to what; None for everything.
        dropout: rate and seed of dropout on the attention weights.
        implementation: `auto` takes the fastest kernel that backend, dtype, head size, mask and dropout allow: `cudnn`
            if it is possible, else `xla`, or `blocked` where L * S is at least `BLOCKED_FROM`. The memory of `xla`
            grows with L * S; `blocked` takes at most `BLOCK` queries at a time, forwards and backwards, at the
            price of computing the weights once more for the gradient: the same results but for float rounding, and
            for dropout, which is drawn for each block. What was chosen, and why not a faster one, is logged once at
            level INFO.

    Raises:
        ValueError: the named implementation cannot do what is asked, or shapes or dtypes of the arrays or of the mask
            do not fit each other; nothing is broadcast.
    """
    check_value("implementation", implementation, Implementation)
    _check_operands(q_BLHK, k_BSHK, v_BSHK, mask)
    sizes = (q_BLHK.shape[-1], v_BSHK.shape[-1])
    obstacle = _cudnn_obstacle(jax.default_backend(), q_BLHK.dtype, sizes, mask, dropout)
    require(implementation != "cudnn" or not obstacle, f"cuDNN attention is not possible here: {obstacle}")
    reason = "asked for"
    if implementation == "auto":
        implementation, reason = _choose(q_BLHK.shape[1] * k_BSHK.shape[1], obstacle)
    _log_choice(implementation, reason)
    if implementation == "cudnn":
        lengths = None if mask is None else mask.key_lengths_B
        causal = mask is not None and mask.is_causal
        return jax.nn.dot_product_attention(
            q_BLHK, k_BSHK, v_BSHK, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    attend = _attend_in_blocks if implementation == "blocked" else _attend
    q_BHLK, k_BHSK, v_BHSK = (x.swapaxes(1, 2) for x in (q_BLHK, k_BSHK, v_BSHK))
    return attend(q_BHLK, k_BHSK, v_BHSK, mask, dropout).swapaxes(1, 2)


def attention_weights(q_BLHK: Array, k_BSHK: Array, mask: AttentionMask | None = None) -> Array:
    """The attention weights themselves, before dropout: float32 [B, H, L, S], each row summing to 1."""
    return _weights(q_BLHK.swapaxes(1, 2), k_BSHK.swapaxes(1, 2), mask)


def _weights(q_BHLK: Array, k_BHSK: Array, mask: AttentionMask | None) -> Array:
    q_BHLK = q_BHLK * jnp.asarray(q_BHLK.shape[-1] ** -0.5, q_BHLK.dtype)
    scores_BHLS = jnp.einsum("BHLK,BHSK->BHLS", q_BHLK, k_BHSK, preferred_element_type=jnp.float32)
    dense = None if mask is None else mask.dense(q_BHLK.shape[2], k_BHSK.shape[2])
    if dense is not None:
        # Finite, so that a row without keys gives no NaN; exp of the difference is exactly 0 for all others.
        scores_BHLS = jnp.where(dense, scores_BHLS, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores_BHLS, axis=-1)


def _attend(q_BHLK: Array, k_BHSK: Array, v_BHSK: Array, mask: AttentionMask | None, drop: Dropout | None) -> Array:
    weights_BHLS = _weights(q_BHLK, k_BHSK, mask).astype(v_BHSK.dtype)
    if drop is not None:
        weights_BHLS = dropout(weights_BHLS, drop.rate, drop.seed)
    return jnp.einsum("BHLS,BHSK->BHLK", weights_BHLS, v_BHSK)


def _attend_in_blocks(
    q_BHLK: Array, k_BHSK: Array, v_BHSK: Array, mask: AttentionMask | None, drop: Dropout | None
) -> Array:
    """As `_attend`, for blocks of queries of one size, one after the other; the backward pass keeps no weights.

    Zeros fill up the last block; what becomes of them is cut off, so that their gradient is 0.
    """
    (B, H, L, K), value_dim = q_BHLK.shape, v_BHSK.shape[-1]
    blocks = -(-L // BLOCK)
    size = -(-L // blocks)

    def attend(block: tuple[Array, Array]) -> Array:
        index, q_BHMK = block
        rows = None if mask is None else mask.of_queries(index * size, size)
        block_drop = None if drop is None else Dropout(drop.rate, cast(Array, fold_seed(drop.seed, index)))
        return _attend(q_BHMK, k_BHSK, v_BHSK, rows, block_drop)

    filled_BHLK = jnp.pad(q_BHLK, ((0, 0), (0, 0), (0, blocks * size - L), (0, 0)))
    q_NBHMK = jnp.moveaxis(filled_BHLK.reshape(B, H, blocks, size, K), 2, 0)
    # `map` is a loop, in which the compiler cannot merge the two computations of the weights in any case.
    y_NBHMK = jax.lax.map(jax.checkpoint(attend, prevent_cse=False), (jnp.arange(blocks), q_NBHMK))
    return jnp.moveaxis(y_NBHMK, 0, 2).reshape(B, H, blocks * size, value_dim)[:, :, :L]


def _check_operands(q_BLHK: Array, k_BSHK: Array, v_BSHK: Array, mask: AttentionMask | None) -> None:
    for name, x in (("queries", q_BLHK), ("keys", k_BSHK), ("values", v_BSHK)):
        fits = jnp.ndim(x) == 4 and 0 not in jnp.shape(x)
        require(fits, f"{name} must be [batch, length, heads, head size], nothing of it empty, not {[*jnp.shape(x)]}")
        require(jnp.issubdtype(x.dtype, jnp.floating), f"{name} must be floating-point numbers, not {x.dtype}")
    (B, L, H, K), S = q_BLHK.shape, k_BSHK.shape[1]
    for name, x, size in (("keys", k_BSHK, K), ("values", v_BSHK, v_BSHK.shape[-1])):
        wanted = (B, S, H, size)
        require(x.shape == wanted, f"{name} must be {[*wanted]} as queries and keys ask, not {[*x.shape]}")
    check_mask(mask)
    if mask is not None:
        mask.check(B, L, S)


def _choose(scores: int, obstacle: str) -> tuple[Implementation, str]:
    """The implementation for so many scores a head, and why it is not a faster one."""
    if not obstacle:
        return "cudnn", "the fastest that is possible"
    if scores >= BLOCKED_FROM:
        return "blocked", f"{obstacle}, and queries times keys are at least {BLOCKED_FROM:,}"
    return "xla", obstacle


def _cudnn_obstacle(
    backend: str, dtype: DTypeLike, sizes: tuple[int, int], mask: AttentionMask | None, drop: Dropout | None
) -> str:
    """Why cuDNN's fused attention cannot be used, or "" if it can."""
    if backend != "gpu":
        return f"the backend is {backend}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16 or float16, not {jnp.dtype(dtype).name}"
    head_dim, value_dim = sizes
    if head_dim != value_dim:
        return f"keys have the size {head_dim}, but values {value_dim}"
    if head_dim > 256 or head_dim % 8:
        return f"the head size must be a multiple of 8 up to 256, not {head_dim}"
    if drop is not None and drop.rate:
        return "its dropout cannot be reproduced after a restart"
    facts = () if mask is None else (mask.key_mask_BS, mask.query_segments_BL, mask.query_mask_BLS)
    if any(fact is not None for fact in facts):
        return "the mask is neither causal nor a length a row"
    if mask is not None and not (isinstance(mask.offset, int) and mask.offset == 0):
        return "the queries do not begin at position 0"
    return ""


@functools.cache
def _log_choice(name: str, reason: str) -> None:
    log.info("attention: %s (%s)", name, reason)


# --- the layer ---------------------------------------------------------------------------------------------------


class KVCache(NamedTuple):
    """Keys and values that were computed before, and how many slots of the S are filled (int32 scalar).

    Heads come first, so that the products of each step of decoding read them as they lie.
    """

    key_BHSK: Array
    value_BHSK: Array
    length: Array

    @classmethod
    def empty(
        cls,
        batch: int,
        slots: int,
        heads: int,
        head_dim: int,
        dtype: DTypeLike = jnp.float32,
        key_dim: int | None = None,
    ) -> "KVCache":
        keys, values = (jnp.zeros((batch, heads, slots, size), dtype) for size in (key_dim or head_dim, head_dim))
        return cls(keys, values, jnp.zeros((), jnp.int32))

    @property
    def slots(self) -> int:
        """How many there are."""
        return self.key_BHSK.shape[-2]

    def append(self, k_BLHK: Array, v_BLHK: Array) -> "KVCache":
        """The cache with L more slots filled.

        Past its last slot it would overwrite. That is a ValueError where the filled length is at hand; under `jit` the
        caller sizes it.
        """
        check_room(self.length, self.slots, k_BLHK.shape[1])

        def write(old_BHSK: Array, new_BLHK: Array) -> Array:
            new_BHLK = new_BLHK.swapaxes(1, 2).astype(old_BHSK.dtype)
            return jax.lax.dynamic_update_slice(old_BHSK, new_BHLK, (0, 0, self.length, 0))

        more = self.length + k_BLHK.shape[1]
        return KVCache(write(self.key_BHSK, k_BLHK), write(self.value_BHSK, v_BLHK), more)

    def attend(self, q_BLHK: Array, mask: AttentionMask | None, drop: Dropout | None) -> Array:
        """Attention to what it holds, [B, L, H, K]. Made for a few queries at a time: no `implementation` is asked."""
        check_mask(mask)
        if mask is not None:
            batch, length = q_BLHK.shape[:2]
            mask.check(batch, length, self.slots)
        return _attend(q_BLHK.swapaxes(1, 2), self.key_BHSK, self.value_BHSK, mask, drop).swapaxes(1, 2)


def check_room(filled: Array | int, slots: int, more: int) -> None:
    """Raises ValueError where a cache has no room for so many more, if its filled length is at hand."""
    used = concrete(filled)
    full = used is not None and used + more > slots
    require(not full, f"the cache has {slots} slots, {used} of them filled: {more} more do not fit")


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2) for self- and cross-attention.

    Self-attention computes queries, keys and values in one product, `qkv` with kernel [D, 3, H, K]; cross-attention
    has `query` [D, H, K] and `key_value` [D, 2, H, K]. Where keys have a size of their own, both have `query`, `key`
    and `value`. Both end in `out` [H, K, D].

    Attributes:
        features: the width D.
        head_dim: K, by default D / H.
        key_dim: of queries and keys, by default K.
        dropout_rate: of the attention weights.
    """

    features: Width
    num_heads: Width
    head_dim: Width | None = None
    dropout_rate: Share = 0.0
    use_bias: bool = True
    initializer_range: float | None = None
    implementation: Implementation = "auto"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    key_dim: Width | None = None

    def setup(self) -> None:
        check_fields(self)
        require(
            self.head_dim is not None or self.features % self.num_heads == 0,
            f"{self.num_heads} heads do not divide the width {self.features}",
        )
        D, H = self.features, self.num_heads
        K = self.head_dim or D // H
        keys = self.key_dim or K
        self.is_fused = keys == K

        def project(equation: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Projection:
            return Projection(
                equation, shape, axes, self.use_bias, self.initializer_range, self.dtype, self.param_dtype
            )

        heads = ("heads", "head_dim")
        self.qkv = project("BLD,DCHK->BLCHK", (D, 3, H, K), ("embed", None, *heads))
        self.query = project("BLD,DHK->BLHK", (D, H, keys), ("embed", *heads))
        self.key = project("BLD,DHK->BLHK", (D, H, keys), ("embed", *heads))
        self.value = project("BLD,DHK->BLHK", (D, H, K), ("embed", *heads))
        self.key_value = project("BLD,DCHK->BLCHK", (D, 2, H, K), ("embed", None, *heads))
        self.out = project("BLHK,HKD->BLD", (H, K, D), (*heads, "embed"))

    def __call__(
        self,
        x_BLD: Array,
        mask: AttentionMask | None = None,
        *,
        memory: Array | KVCache | None = None,
        cache: KVCache | None = None,
        seed: Array | None = None,
    ) -> tuple[Array, KVCache | None]:
        """Attends from x to x, or to a memory.

        Args:
            x_BLD: queries' side.
            mask: which keys a query may attend to.
            memory: None for self-attention; for cross-attention the encoder's output [B, S, D], or what
                `project_memory` made of it. With a batch of M times as many queries, M consecutive rows share a
                row of the memory, as the beams of one sentence do.
            cache: self-attention over earlier positions: x continues what the cache holds, causally, or as a mask with
                `query_mask_BLS` says.
            seed: uint32 [2] that draws the dropout of the weights; None means none.

        Returns:
            [B, L, D], and the cache with x appended (None without a cache).
        """
        drop = None if seed is None or self.dropout_rate == 0.0 else Dropout(self.dropout_rate, seed)
        if memory is not None:
            require(cache is None, "a cache is for self-attention; cross-attention takes what project_memory made")
            return self._cross(x_BLD, memory, mask, drop), None
        q_BLHK, k_BSHK, v_BSHK = self._query_key_value(x_BLD)
        if cache is not None:
            if mask is None or mask.query_mask_BLS is None:
                mask = AttentionMask.causal(offset=cache.length) & mask
            cache = cache.append(k_BSHK, v_BSHK)
            return self.out(cache.attend(q_BLHK, mask, drop)), cache
        return self.out(self._attend(q_BLHK, k_BSHK, v_BSHK, mask, drop)), None

    def project_memory(self, memory_BSD: Array) -> KVCache:
        """The keys and values of a memory, to be computed once and attended to many times."""
        k_BSHK, v_BSHK = self._key_value(memory_BSD)
        return KVCache(k_BSHK.swapaxes(1, 2), v_BSHK.swapaxes(1, 2), jnp.asarray(memory_BSD.shape[1], jnp.int32))

    def weights(self, x_BLD: Array, mask: AttentionMask | None = None, *, memory: Array | None = None) -> Array:
        """The weights of attention to x or a memory [B, S, D], computed for looking at them: float32 [B, H, L, S]."""
        if memory is None:
            q_BLHK, k_BSHK, _ = self._query_key_value(x_BLD)
        else:
            q_BLHK, k_BSHK = self.query(x_BLD), self._key_value(memory)[0]
        return attention_weights(q_BLHK, k_BSHK, mask)

    def _query_key_value(self, x_BLD: Array) -> list[Array]:
        if self.is_fused:
            return _unfused(self.qkv(x_BLD))
        return [constrain(part(x_BLD), "batch", None, "heads", None) for part in (self.query, self.key, self.value)]

    def _key_value(self, memory_BSD: Array) -> list[Array]:
        if self.is_fused:
            return _unfused(self.key_value(memory_BSD))
        return [constrain(part(memory_BSD), "batch", None, "heads", None) for part in (self.key, self.value)]

    def _cross(self, x_BLD: Array, memory: Array | KVCache, mask: AttentionMask | None, drop: Dropout | None) -> Array:
        q_BLHK = constrain(self.query(x_BLD), "batch", None, "heads", None)
        rows = len(memory.key_BHSK if isinstance(memory, KVCache) else memory)
        require(len(x_BLD) % rows == 0 < len(x_BLD), f"{len(x_BLD)} rows of queries cannot share {rows} of the memory")
        shared = q_BLHK.reshape(rows, -1, *q_BLHK.shape[2:])
        if isinstance(memory, KVCache):
            y_BLHK = memory.attend(shared, mask, drop)
        else:
            k_BSHK, v_BSHK = self._key_value(memory)
            y_BLHK = self._attend(shared, k_BSHK, v_BSHK, mask, drop)
        return self.out(y_BLHK.reshape(*q_BLHK.shape[:3], -1))

    def _attend(
        self, q_BLHK: Array, k_BSHK: Array, v_BSHK: Array, mask: AttentionMask | None, drop: Dropout | None
    ) -> Array:
        return dot_product_attention(q_BLHK, k_BSHK, v_BSHK, mask, dropout=drop, implementation=self.implementation)


def _unfused(y_BLCHK: Array) -> list[Array]:
    y_BLCHK = constrain(y_BLCHK, "batch", None, None, "heads", None)
    return [y_BLCHK[:, :, i] for i in range(y_BLCHK.shape[2])]
