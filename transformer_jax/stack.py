"""Encoder and decoder stacks: one layer of each, run one after the other or scanned."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from transformer_jax.attention import Implementation, KVCache, MultiHeadAttention
from transformer_jax.checks import Layers, NotNegative, Share, Width, check_fields, require
from transformer_jax.layers import (
    Activation,
    FeedForward,
    LayerNorm,
    constrain,
    dropout,
    dropout_seed,
    fold_seed,
)
from transformer_jax.masks import AttentionMask

Remat = Literal["none", "full", "dots", "dots_no_batch"]
REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """What an encoder or decoder stack is made of.

    Attributes:
        norm: "post" normalises behind each residual sum (Vaswani et al. 2017), "pre" in front of each sublayer,
            with one more normalisation behind the last layer (Xiong et al. 2020).
        dropout_rate: on the output of each sublayer before it is added (section 5.4 of the paper);
            `attention_dropout_rate` is on the attention weights, `activation_dropout_rate` behind the activation.
        initializer_range: standard deviation of a truncated normal, or None for Glorot's uniform.
        scan_layers: compile one layer and scan over stacked parameters (see `stack_layers`).
        remat: what the backward pass may keep: none (everything is kept) | full | dots | dots_no_batch.
    """

    num_layers: Layers = 6
    features: Width = 512
    num_heads: Width = 8
    head_dim: Width | None = None
    key_dim: Width | None = None
    mlp_dim: Width = 2048
    activation: Activation = "relu"
    norm: Literal["pre", "post"] = "post"
    norm_epsilon: NotNegative = 1e-6
    dropout_rate: Share = 0.1
    attention_dropout_rate: Share = 0.0
    activation_dropout_rate: Share = 0.0
    attention_bias: bool = True
    initializer_range: NotNegative | None = None
    attention: Implementation = "auto"
    scan_layers: bool = False
    remat: Remat = "none"

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.head_dim is not None or self.features % self.num_heads == 0,
            f"{self.num_heads} heads do not divide the width {self.features}",
        )


class _Layer(nn.Module):
    """What encoder and decoder layers share: their parts, and the residual connection around each sublayer."""

    config: StackConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def _attention(self) -> MultiHeadAttention:
        c = self.config
        return MultiHeadAttention(
            c.features,
            c.num_heads,
            c.head_dim,
            c.attention_dropout_rate,
            c.attention_bias,
            c.initializer_range,
            c.attention,
            self.dtype,
            self.param_dtype,
            c.key_dim,
        )

    @nn.nowrap
    def _norm(self) -> LayerNorm:
        return LayerNorm(self.config.features, self.config.norm_epsilon, self.dtype, self.param_dtype)

    @nn.nowrap
    def _mlp(self) -> FeedForward:
        c = self.config
        return FeedForward(
            c.features,
            c.mlp_dim,
            c.activation,
            c.activation_dropout_rate,
            c.initializer_range,
            self.dtype,
            self.param_dtype,
        )

    @nn.nowrap
    def _residual(self, x_BLD: Array, norm: LayerNorm, sublayer: Callable[[Array], Array], seed: Array | None) -> Array:
        if self.config.norm == "pre":
            x_BLD = x_BLD + dropout(sublayer(norm(x_BLD)), self.config.dropout_rate, seed)
        else:
            x_BLD = norm(x_BLD + dropout(sublayer(x_BLD), self.config.dropout_rate, seed))
        return constrain(x_BLD, "batch", "length", None)


class EncoderLayer(_Layer):
    """Self-attention and a feed-forward network (Vaswani et al. 2017, figure 1, left)."""

    def setup(self) -> None:
        self.attention, self.attention_norm = self._attention(), self._norm()
        self.mlp, self.mlp_norm = self._mlp(), self._norm()

    def __call__(self, x_BLD: Array, mask: AttentionMask | None = None, *, seed: Array | None = None) -> Array:
        """[B, L, D] -> [B, L, D]; `seed` (uint32 [2]) draws the layer's dropout, None means none."""

        def attend(h_BLD: Array) -> Array:
            return self.attention(h_BLD, mask, seed=fold_seed(seed, 0))[0]

        x_BLD = self._residual(x_BLD, self.attention_norm, attend, fold_seed(seed, 1))
        return self._residual(x_BLD, self.mlp_norm, lambda h: self.mlp(h, seed=fold_seed(seed, 2)), fold_seed(seed, 3))

    def attention_weights(self, x_BLD: Array, mask: AttentionMask | None = None) -> Array:
        """The weights by which the layer attends, without dropout: float32 [B, H, L, L]."""
        return self.attention.weights(self.attention_norm(x_BLD) if self.config.norm == "pre" else x_BLD, mask)


class DecoderLayer(_Layer):
    """Self-attention, attention to the encoder's output, and a feed-forward network (figure 1, right)."""

    def setup(self) -> None:
        self.self_attention, self.self_attention_norm = self._attention(), self._norm()
        self.cross_attention, self.cross_attention_norm = self._attention(), self._norm()
        self.mlp, self.mlp_norm = self._mlp(), self._norm()

    def __call__(
        self,
        x_BLD: Array,
        memory: Array | KVCache,
        self_mask: AttentionMask | None = None,
        cross_mask: AttentionMask | None = None,
        *,
        cache: KVCache | None = None,
        seed: Array | None = None,
    ) -> tuple[Array, KVCache | None]:
        """[B, L, D] -> [B, L, D] and the cache that went in, longer by L; see `MultiHeadAttention`."""

        def attend_self(h_BLD: Array) -> Array:
            nonlocal cache
            h_BLD, cache = self.self_attention(h_BLD, self_mask, cache=cache, seed=fold_seed(seed, 0))
            return h_BLD

        def attend_memory(h_BLD: Array) -> Array:
            return self.cross_attention(h_BLD, cross_mask, memory=memory, seed=fold_seed(seed, 2))[0]

        x_BLD = self._residual(x_BLD, self.self_attention_norm, attend_self, fold_seed(seed, 1))
        x_BLD = self._residual(x_BLD, self.cross_attention_norm, attend_memory, fold_seed(seed, 3))
        x_BLD = self._residual(x_BLD, self.mlp_norm, lambda h: self.mlp(h, seed=fold_seed(seed, 4)), fold_seed(seed, 5))
        return x_BLD, cache

    def cross_attention_weights(
        self,
        x_BLD: Array,
        memory_BSD: Array,
        self_mask: AttentionMask | None = None,
        cross_mask: AttentionMask | None = None,
    ) -> Array:
        """The weights by which the layer attends to the memory, without dropout: float32 [B, H, L, S]."""
        x_BLD = self._residual(x_BLD, self.self_attention_norm, lambda h: self.self_attention(h, self_mask)[0], None)
        h_BLD = self.cross_attention_norm(x_BLD) if self.config.norm == "pre" else x_BLD
        return self.cross_attention.weights(h_BLD, cross_mask, memory=memory_BSD)

    def project_memory(self, memory_BSD: Array) -> KVCache:
        return self.cross_attention.project_memory(memory_BSD)


class _Stack(nn.Module):
    """Runs `num_layers` layers of one class, with parameters `layer_0` ... or, scanned, stacked in `layers`."""

    config: StackConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    layer_class: type[_Layer] = _Layer

    def setup(self) -> None:
        def make() -> _Layer:
            return self.layer_class(self.config, self.dtype, self.param_dtype)

        if self.config.scan_layers:
            self.layers = make()
        else:
            self.layer = [make() for _ in range(self.config.num_layers)]
        if self.config.norm == "pre":
            self.norm = LayerNorm(self.config.features, self.config.norm_epsilon, self.dtype, self.param_dtype)

    @nn.nowrap
    def _run(self, body: Callable[..., tuple[Any, Any]], x: Any, inputs: Any = None) -> tuple[Any, Any]:
        """x through `body(layer, x, index, inputs of that layer) -> (x, outputs of that layer)`, layer by layer.

        Inputs and outputs are a list with one entry a layer, or stacked along a leading axis when scanning.
        """
        policy = REMAT_POLICIES[self.config.remat]
        if policy is not None:
            body = nn.remat(body, policy=policy, prevent_cse=not self.config.scan_layers)
        if self.config.scan_layers:

            def step(layer: _Layer, x: Any, xs: Any) -> tuple[Any, Any]:
                return body(layer, x, *xs)

            indices = jnp.arange(self.config.num_layers, dtype=jnp.uint32)
            scan = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True})
            return scan(self.layers, x, (indices, inputs))
        outputs = []
        for index, layer in enumerate(self.layer):
            x, y = body(layer, x, jnp.uint32(index), None if inputs is None else inputs[index])
            outputs.append(y)
        return x, outputs

    @nn.nowrap
    def _seed(self, deterministic: bool) -> Array | None:
        return None if deterministic else dropout_seed(self.make_rng("dropout"))


class EncoderStates(NamedTuple):
    """What an encoder computes on the way.

    Attributes:
        output: [B, L, D].
        hidden_states: what went into each layer, and the output behind the last one: N + 1 arrays [B, L, D].
        attentions: each layer's attention weights without dropout: N float32 arrays [B, H, L, L].
    """

    output: Array
    hidden_states: tuple[Array, ...] | None
    attentions: tuple[Array, ...] | None


class Encoder(_Stack):
    """A stack of encoder layers: [B, L, D] -> [B, L, D]."""

    layer_class: type[_Layer] = EncoderLayer

    def __call__(self, x_BLD: Array, mask: AttentionMask | None = None, *, deterministic: bool = True) -> Array:
        """Dropout needs `deterministic=False` and `rngs={"dropout": key}`."""
        return self.states(x_BLD, mask, deterministic=deterministic).output

    def states(
        self,
        x_BLD: Array,
        mask: AttentionMask | None = None,
        *,
        deterministic: bool = True,
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> EncoderStates:
        """The output with, where asked for, each layer's input and attention weights.

        Fused kernels keep no weights: they are computed once more from the same parameters.
        """
        seed = self._seed(deterministic)

        def body(layer: EncoderLayer, x_BLD: Array, index: Array, _: None) -> tuple[Array, Any]:
            seen = (x_BLD if hidden_states else None, layer.attention_weights(x_BLD, mask) if attentions else None)
            return layer(x_BLD, mask, seed=fold_seed(seed, index)), seen

        x_BLD, seen = self._run(body, constrain(x_BLD, "batch", "length", None))
        y_BLD = self.norm(x_BLD) if self.config.norm == "pre" else x_BLD
        inputs, weights = seen if self.config.scan_layers else zip(*seen, strict=True)
        return EncoderStates(y_BLD, (*inputs, y_BLD) if hidden_states else None, tuple(weights) if attentions else None)


class Decoder(_Stack):
    """A stack of decoder layers over a memory: [B, L, D] -> [B, L, D]."""

    layer_class: type[_Layer] = DecoderLayer

    def __call__(
        self,
        x_BLD: Array,
        memory: Any,
        self_mask: AttentionMask | None = None,
        cross_mask: AttentionMask | None = None,
        *,
        cache: Any = None,
        deterministic: bool = True,
    ) -> tuple[Array, Any]:
        """Runs the stack, all positions at once or, with a cache, those that continue it.

        Args:
            memory: the encoder's output [B, S, D], or what `project_memory` made of it.
            self_mask, cross_mask: which target and source positions may be attended to; with a cache the causal
                part of the first is implied.
            cache: from `empty_cache`, or from the call before.

        Returns:
            The output, and the cache (None without one).
        """
        seed = self._seed(deterministic)
        projected = isinstance(memory, (KVCache, list))
        inputs: Any = None
        if projected or cache is not None:
            inputs = (memory if projected else None, cache)
            if not self.config.scan_layers:
                inputs = [(memory[i] if projected else None, cache and cache[i]) for i in range(len(self.layer))]

        def body(layer: DecoderLayer, x_BLD: Array, index: Array, of_layer: Any) -> tuple[Array, KVCache | None]:
            layer_memory, layer_cache = of_layer or (None, None)
            return layer(
                x_BLD,
                memory if layer_memory is None else layer_memory,
                self_mask,
                cross_mask,
                cache=layer_cache,
                seed=fold_seed(seed, index),
            )

        x_BLD, caches = self._run(body, constrain(x_BLD, "batch", "length", None), inputs)
        y_BLD = self.norm(x_BLD) if self.config.norm == "pre" else x_BLD
        return y_BLD, None if cache is None else caches

    def cross_attentions(
        self,
        x_BLD: Array,
        memory_BSD: Array,
        self_mask: AttentionMask | None = None,
        cross_mask: AttentionMask | None = None,
    ) -> tuple[Array, ...]:
        """Each layer's weights of attention to the memory, see `EncoderStates`: N float32 arrays [B, H, L, S]."""

        def body(layer: DecoderLayer, x_BLD: Array, *_: Any) -> tuple[Array, Array]:
            given = (x_BLD, memory_BSD, self_mask, cross_mask)
            return layer(*given)[0], layer.cross_attention_weights(*given)

        return tuple(self._run(body, constrain(x_BLD, "batch", "length", None))[1])

    def project_memory(self, memory_BSD: Array) -> Any:
        """Every layer's keys and values of the encoder's output, to be computed once and decoded from many times."""
        return self._run(lambda layer, x, *_: (x, layer.project_memory(memory_BSD)), jnp.zeros(()))[1]

    @nn.nowrap
    def empty_cache(self, batch: int, slots: int) -> Any:
        """A cache for every layer, with room for `slots` target positions."""
        c = self.config
        head_dim = c.head_dim or c.features // c.num_heads
        one = KVCache.empty(batch, slots, c.num_heads, head_dim, self.dtype, c.key_dim)
        if c.scan_layers:
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (c.num_layers, *x.shape)), one)
        return [one] * c.num_layers


# --- one parameter layout, two ways of running -------------------------------------------------------------------


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """`layer_0` ... `layer_{N-1}` -> `layers` with a leading axis N, wherever they occur; what scanning reads."""
    out = {k: stack_layers(v) if isinstance(v, dict) else v for k, v in params.items() if not k.startswith("layer_")}
    layers: Sequence[Any] = [params[f"layer_{i}"] for i in range(len(params) - len(out))]
    if layers:
        out["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return out


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`: the canonical layout, which exports and golden lists use.

    Shapes (`jax.ShapeDtypeStruct`) are unstacked like arrays: those of a model of many layers cost the tracing of one.
    """

    def take(leaf: Any, i: int) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf[i]

    out = {k: unstack_layers(v) if isinstance(v, dict) else v for k, v in params.items() if k != "layers"}
    if "layers" in params:
        counts = {leaf.shape[0] for leaf in jax.tree.leaves(params["layers"])}
        require(len(counts) == 1, f"stacked layers must all be of one number, not {sorted(counts)}")
        count = counts.pop()
        for i in range(count):
            out[f"layer_{i}"] = jax.tree.map(functools.partial(take, i=i), params["layers"])
    return out
