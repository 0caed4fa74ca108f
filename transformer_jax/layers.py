"""The layers that own parameters, dropout, and the logical axes of both."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from transformer_jax.checks import Share, Width, check_fields, check_ids, check_value, require

Activation = Literal["relu", "gelu", "gelu_new", "swish"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "swish": jax.nn.swish,
}

Axes = tuple[str | None, ...]


# --- logical axes ------------------------------------------------------------------------------------------------


def constrain(x: Array, *axes: str | None) -> Array:
    """Asks the compiler to lay out an activation by the logical axis rules in force; the identity without rules.

    The rules are flax's (`flax.linen.logical_axis_rules`), the mesh is that of `jax.set_mesh`.
    """
    rules = nn.get_logical_axis_rules()
    return jax.lax.with_sharding_constraint(x, nn.logical_to_mesh_axes(axes, rules)) if rules else x


def logical_axes(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The logical axes of each parameter, as a tree like `model.init(key, *args, **kwargs)["params"]`.

    Each leaf is a tuple of axis names (None: never sharded), one for each dimension. Nothing is computed: the
    model is traced, and every layer that owns parameters is asked for the axes that it declares. This keeps the
    parameters themselves plain arrays.
    """
    declared: dict[tuple[str, ...], Axes] = {}

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Owner):
            path = context.module.path
            declared.update({(*path, name): axes for name, axes in context.module.parameter_axes().items()})
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(functools.partial(model.init, **kwargs), jax.random.key(0), *args)["params"]

    def axes_of(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Axes:
        names = tuple(key.key for key in path)
        require(names in declared, f"parameter {'/'.join(names)} {leaf.shape} declares no logical axes")
        axes = declared[names]
        stacked = ("layers",) if "layers" in names else ()  # scanned layers carry one more axis in front
        require(
            isinstance(axes, tuple) and leaf.ndim == len(stacked + axes),
            f"parameter {'/'.join(names)} {leaf.shape} declares the axes {axes}",
        )
        return stacked + axes

    return jax.tree_util.tree_map_with_path(axes_of, shapes)


class Owner(nn.Module):
    """A layer that owns parameters and declares their logical axes."""

    @nn.nowrap
    def parameter_axes(self) -> dict[str, Axes]:
        """Parameter name -> logical axis names."""
        raise TypeError(f"{type(self).__name__} owns parameters and must declare their axes")


# --- layers ------------------------------------------------------------------------------------------------------


class Projection(Owner):
    """An einsum with a kernel and a bias of its own.

    The equation says it all: `"BLD,DHK->BLHK"` contracts D and adds a bias [H, K]. A letter C in the kernel counts
    matrices that are fused into one product (queries, keys, values) and are initialised each for itself.

    Attributes:
        shape, axes: size and logical name of each kernel axis, in the order of the equation.
        initializer_range: standard deviation of a normal that is truncated at two of it (BERT), or None for Glorot's
            uniform.
        dtype: of the computation and the result; parameters are stored in `param_dtype`.
    """

    equation: str
    shape: tuple[int, ...]
    axes: Axes
    use_bias: bool = True
    initializer_range: float | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def _kernel_roles(self) -> tuple[list[int], list[int], list[int]]:
        inputs, output = self.equation.split("->")
        letters = inputs.split(",")[1]
        summed = [i for i, letter in enumerate(letters) if letter not in output]
        fused = [i for i, letter in enumerate(letters) if letter == "C"]
        kept = [i for i in range(len(letters)) if i not in summed]
        return summed, fused, kept

    @nn.nowrap
    def parameter_axes(self) -> dict[str, Axes]:
        axes: dict[str, Axes] = {"kernel": self.axes}
        if self.use_bias:
            axes["bias"] = tuple(self.axes[i] for i in self._kernel_roles()[2])
        return axes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        summed, fused, kept = self._kernel_roles()
        init: Any
        if self.initializer_range is None:
            out = [i for i in kept if i not in fused]
            init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", summed, out, fused)
        else:
            init = nn.initializers.truncated_normal(self.initializer_range)
        kernel = self.param("kernel", init, self.shape, self.param_dtype)
        y = jnp.einsum(self.equation, x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            shape = tuple(self.shape[i] for i in kept)
            bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
            y += bias.astype(self.dtype).reshape((1,) * (y.ndim - len(shape)) + shape)
        return y


def take_rows(name: str, table_VD: Array, ids: Array) -> Array:
    """Rows of a table, integers [...] -> [..., D].

    Ids below 0 or past the table are a ValueError that says the table's name where values are at hand; under `jit`
    their rows are NaN, so that nothing plausible comes of them.
    """
    require(jnp.issubdtype(table_VD.dtype, jnp.floating), f"the table {name!r} must be floating, not {table_VD.dtype}")
    check_ids(f"ids of the table {name!r}", ids, len(table_VD), f"it has {len(table_VD)} rows")
    return jnp.asarray(table_VD).at[jnp.asarray(ids)].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


class Embed(Owner):
    """A table [V, D]: looked up on the way in, and as the softmax's weights on the way out.

    Attributes:
        stddev: standard deviation of the normal (truncated at two of it) that initialises the table.
        rows: logical name of the table's first axis; None for short tables that are never split along it.
    """

    num_embeddings: int
    features: int
    stddev: float
    rows: str | None = "vocab"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def parameter_axes(self) -> dict[str, Axes]:
        return {"embedding": (self.rows, "embed")}

    def setup(self) -> None:
        shape = (self.num_embeddings, self.features)
        self.embedding = self.param("embedding", self.initial_table, shape, self.param_dtype)

    @nn.nowrap
    def initial_table(self, key: Array, shape: tuple[int, int], dtype: DTypeLike) -> Array:
        """What the table begins as."""
        return nn.initializers.truncated_normal(self.stddev)(key, shape, dtype)

    def __call__(self, ids_BL: Array) -> Array:
        """Rows of the table, [B, L] integers -> [B, L, D] in `dtype`; ids out of range as `take_rows` has it."""
        x_BLD = take_rows(self.name or "embedding", self._table(), ids_BL)
        return constrain(x_BLD, "batch", "length", None)

    def attend(self, x_BLD: Array, rows_ND: Array | None = None) -> Array:
        """Products with every row, or with those of `rows` alone, [B, L, D] -> float32 [B, L, V] or [B, L, N]."""
        table_VD = self._table() if rows_ND is None else rows_ND
        logits_BLV = jnp.einsum("BLD,VD->BLV", x_BLD.astype(self.dtype), table_VD)
        return constrain(logits_BLV.astype(jnp.float32), "batch", "length", "vocab")

    def some_rows(self, ids_N: Array) -> Array:
        """[N, D] in `dtype`."""
        return take_rows(self.name or "embedding", self._table(), ids_N)

    def _table(self) -> Array:
        # Gathered along D before use: a lookup in a table that is split both ways makes the compiler replicate its
        # result, activations and all.
        return constrain(self.embedding.astype(self.dtype), self.rows, None)


class LayerNorm(Owner):
    """Layer normalisation over the last axis (Ba et al. 2016), computed in float32, returned in `dtype`."""

    features: int
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def parameter_axes(self) -> dict[str, Axes]:
        return {"scale": ("embed",), "bias": ("embed",)}

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (self.features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, -1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + float(self.epsilon))
        shape = (1,) * (x.ndim - 1) + (self.features,)
        return (y * scale.reshape(shape) + bias.reshape(shape)).astype(self.dtype)


class FeedForward(nn.Module):
    """The position-wise network: D -> F, activation, F -> D (Vaswani et al. 2017, section 3.3)."""

    features: Width
    mlp_dim: Width
    activation: Activation = "relu"
    dropout_rate: Share = 0.0
    initializer_range: float | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_fields(self)
        options: dict[str, Any] = {
            "initializer_range": self.initializer_range,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        self.up = Projection("BLD,DF->BLF", (self.features, self.mlp_dim), ("embed", "mlp"), **options)
        self.down = Projection("BLF,FD->BLD", (self.mlp_dim, self.features), ("mlp", "embed"), **options)

    def __call__(self, x_BLD: Array, *, seed: Array | None = None) -> Array:
        """[B, L, D] -> [B, L, D]; `seed` draws the dropout behind the activation, None means none."""
        h_BLF = constrain(ACTIVATIONS[self.activation](self.up(x_BLD)), "batch", "length", "mlp")
        return self.down(dropout(h_BLF, self.dropout_rate, seed))


# --- dropout -----------------------------------------------------------------------------------------------------


class Dropout(NamedTuple):
    """What a kernel needs to draw dropout by itself: the rate and the seed (uint32 [2])."""

    rate: float
    seed: Array


def dropout_seed(key: Array) -> Array:
    """A JAX random key -> the uint32 [2] seed that `dropout` and `fold_seed` take."""
    return jax.random.bits(key, (2,), jnp.uint32)


def fold_seed(seed: Array | None, index: Array | int) -> Array | None:
    """The seed of layer or site `index`; None stays None."""
    if seed is None:
        return None
    offset = jnp.asarray(index, jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(0x85EBCA6B)
    return jnp.stack([_mix(seed[0] ^ offset), _mix(seed[1] + offset)])


def dropout(x: Array, rate: float, seed: Array | None) -> Array:
    """Zeroes elements with probability `rate` and divides the others by 1 - rate; the identity without a seed.

    Raises ValueError unless 0 <= rate < 1 and the seed is uint32 [2].

    What is dropped depends on the seed and the element's position alone: it is the same on every mesh and when
    remat computes it again, and the backward pass draws it anew where it would otherwise be stored.
    """
    check_value("dropout rate", rate, Share)
    if seed is None or rate == 0.0:
        return x
    kind = (jnp.result_type(seed), jnp.shape(seed))
    require(kind == (jnp.uint32, (2,)), f"a seed is uint32 [2] (see dropout_seed), not {kind[0]} {[*kind[1]]}")
    return _dropout(x, rate, seed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _dropout(x: Array, rate: float, seed: Array) -> Array:
    keep = random_bits(seed, x.shape) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def _dropout_forward(x: Array, rate: float, seed: Array) -> tuple[Array, Array]:
    return _dropout(x, rate, seed), seed


def _dropout_backward(rate: float, seed: Array, g: Array) -> tuple[Array, None]:
    return _dropout(g, rate, seed), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


def random_bits(seed: Array, shape: tuple[int, ...]) -> Array:
    """Uniform uint32 bits as a hash of (seed, index), cheap enough to fuse into whatever reads them.

    The leading axes are hashed once a row; each element then costs one `_mix`. On a CPU this is some thirty times
    faster than threefry.
    """
    *lead, _ = shape
    row = jnp.zeros((*lead, 1), jnp.uint32)
    stride = 1
    for axis in reversed(range(len(lead))):
        row += jax.lax.broadcasted_iota(jnp.uint32, (*lead, 1), axis) * jnp.uint32(stride % 2**32)
        stride *= lead[axis]
    row = _mix(_mix(row ^ seed[0]) + seed[1])
    column = jax.lax.broadcasted_iota(jnp.uint32, shape, len(lead)) * jnp.uint32(0x9E3779B9)
    return _mix(row ^ column)


def _mix(h: Array) -> Array:
    """The 32-bit finaliser `lowbias32` (Wellons 2018, "Prospecting for hash functions")."""
    h ^= h >> 16
    h *= jnp.uint32(0x7FEB352D)
    h ^= h >> 15
    h *= jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)
