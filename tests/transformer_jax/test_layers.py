import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax import Embed, Encoder, LayerNorm, Projection, StackConfig, dropout, dropout_seed, logical_axes
from transformer_jax.layers import Owner, fold_seed, random_bits

SEED = jnp.asarray([123, 456], jnp.uint32)
bits_of = jax.jit(random_bits, static_argnums=1)
drop = jax.jit(dropout, static_argnums=1)


# --- layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_layer_norm_is_its_definition(shift):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 3, 8)) + shift).astype(np.float32)
    scale, bias = rng.normal(size=(2, 8)).astype(np.float32)
    params = {"scale": scale, "bias": bias}
    y = LayerNorm(8, epsilon=1e-3).apply({"params": params}, x)
    x64 = x.astype(np.float64)
    mean, variance = x64.mean(-1, keepdims=True), x64.var(-1, keepdims=True)
    np.testing.assert_allclose(y, (x64 - mean) / np.sqrt(variance + 1e-3) * scale + bias, atol=1e-3 if shift else 1e-5)


def test_layer_norm_computes_in_float32():
    """Also from bfloat16, whose mean over values such as these would be off by more than their spread."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)) * 4 + 100, jnp.bfloat16)
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    y = LayerNorm(8, dtype=jnp.bfloat16).apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    x64 = np.asarray(x, np.float64)
    expected = (x64 - x64.mean(-1, keepdims=True)) / x64.std(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-3)


def test_glorot_bounds_are_those_of_each_fused_matrix():
    D, C, H, K = 64, 3, 4, 32
    shape = (D, C, H, K)
    module = Projection("BLD,DCHK->BLCHK", shape, ("embed", None, "heads", "head_dim"))
    params = module.init(jax.random.key(0), jnp.zeros((1, 1, D)))["params"]
    bound = np.sqrt(6 / (D + H * K))
    for c in range(C):
        kernel = np.asarray(params["kernel"][:, c])
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.03)
    assert params["bias"].shape == (C, H, K) and not params["bias"].any()
    # Heads summed over on the way out count as the input.
    out = Projection("BLHK,HKD->BLD", (H, K, D), ("heads", "head_dim", "embed"))
    kernel = np.asarray(out.init(jax.random.key(0), jnp.zeros((1, 1, H, K)))["params"]["kernel"])
    assert 0.99 * bound < np.abs(kernel).max() <= bound


def test_normals_are_truncated_at_two_standard_deviations():
    """As in BERT: what is asked for is the deviation before truncation, 0.88 of it is left."""
    left = 0.87962566
    module = Projection("BLD,DF->BLF", (100, 200), ("embed", "mlp"), initializer_range=0.02)
    kernel = np.asarray(module.init(jax.random.key(0), jnp.zeros((1, 1, 100)))["params"]["kernel"])
    assert 0.99 * 0.04 < np.abs(kernel).max() <= 0.04 + 1e-7
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 0.02 * left], atol=4e-4)
    table = np.asarray(
        Embed(200, 100, stddev=0.1).init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]["embedding"]
    )
    np.testing.assert_allclose(table.std(), 0.1 * left, rtol=0.02)


def test_a_table_reads_rows_and_multiplies_with_them():
    table = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    module = Embed(5, 4, stddev=1.0)
    ids = np.array([[3, 0], [4, 4]])
    np.testing.assert_array_equal(module.apply({"params": {"embedding": table}}, ids), table[ids])
    x = np.random.default_rng(1).normal(size=(1, 3, 4)).astype(np.float32)
    logits = module.apply({"params": {"embedding": table}}, x, method="attend")
    np.testing.assert_allclose(logits, x @ table.T, atol=1e-5)
    half = Embed(5, 4, stddev=1.0, dtype=jnp.bfloat16)
    assert half.apply({"params": {"embedding": table}}, ids).dtype == jnp.bfloat16
    assert half.apply({"params": {"embedding": table}}, x, method="attend").dtype == jnp.float32


# --- logical axes ------------------------------------------------------------------------------------------------


def is_axes(node):
    return isinstance(node, tuple)


@pytest.mark.parametrize("scan", [False, True])
def test_every_parameter_has_an_axis_name_for_each_dimension(scan):
    model = Encoder(StackConfig(2, 8, 2, mlp_dim=12, norm="pre", scan_layers=scan))
    x = jnp.zeros((1, 2, 8))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    axes = logical_axes(model, x)
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(shapes)
    jax.tree.map(lambda names, leaf: np.testing.assert_equal(len(names), leaf.ndim), axes, shapes, is_leaf=is_axes)
    layer = axes["layers" if scan else "layer_1"]
    stacked = ("layers",) if scan else ()
    assert layer["attention"]["qkv"] == {
        "kernel": (*stacked, "embed", None, "heads", "head_dim"),
        "bias": (*stacked, None, "heads", "head_dim"),
    }
    assert layer["attention"]["out"] == {
        "kernel": (*stacked, "heads", "head_dim", "embed"),
        "bias": (*stacked, "embed"),
    }
    assert layer["mlp"]["down"]["kernel"] == (*stacked, "mlp", "embed")
    assert axes["norm"] == {"scale": ("embed",), "bias": ("embed",)}


def test_parameters_without_axes_are_found():
    class Silent(Owner):
        @nn.compact
        def __call__(self, x):
            return x * self.param("gain", nn.initializers.ones, (1, 2))

    with pytest.raises(TypeError, match="Silent owns parameters and must declare their axes"):
        logical_axes(Silent(), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"kernel \(2, 3\) declares no logical axes"):
        logical_axes(nn.Dense(3, use_bias=False), jnp.zeros((1, 2)))


def test_axes_of_the_wrong_number_are_found():
    class Short(Owner):
        @nn.nowrap
        def parameter_axes(self):
            return {"kernel": ("embed",)}

        @nn.compact
        def __call__(self, x):
            return x @ self.param("kernel", nn.initializers.ones, (2, 3))

    with pytest.raises(ValueError, match="kernel"):
        logical_axes(Short(), jnp.zeros((1, 2)))


# --- dropout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_has_its_rate_its_scale_and_no_bias(rate):
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (200, 500)), jnp.float32)
    y = np.asarray(drop(x, rate, SEED))
    kept = y != 0
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs((1 - kept.mean()) - rate) < 4 * deviation
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / (1 - rate), rtol=1e-6)
    np.testing.assert_allclose(y.mean(), x.mean(), rtol=4 * deviation / (1 - rate))


def test_dropout_is_the_identity_without_a_seed_or_a_rate():
    x = jnp.arange(6.0).reshape(2, 3)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, SEED) is x
    assert fold_seed(None, 3) is None


def test_the_backward_pass_drops_the_same_elements():
    x = jnp.ones((16, 64))
    y, vjp = jax.vjp(lambda x: dropout(x, 0.3, SEED), x)
    np.testing.assert_array_equal(vjp(jnp.ones_like(y))[0], y)
    again = jax.grad(jax.checkpoint(lambda x: dropout(x, 0.3, SEED).sum()))(x)
    np.testing.assert_array_equal(again, y)


def test_half_precision_drops_the_same_elements():
    x = jnp.ones((16, 64))
    half = dropout(x.astype(jnp.bfloat16), 0.3, SEED)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half == 0, dropout(x, 0.3, SEED) == 0)


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


SHAPE = (4, 128, 128)
NOISE = 5 / np.sqrt(np.prod(SHAPE))  # five standard deviations of a correlation of independent values


def uniform(seed):
    return np.asarray(bits_of(seed, SHAPE)) / 2.0**32


def test_every_bit_is_fair():
    """Chi-square with one degree of freedom for each of the 32 bits, and with 255 for each byte."""
    bits = np.asarray(bits_of(SEED, SHAPE)).reshape(-1)
    for position in range(32):
        ones = int(((bits >> position) & 1).sum())
        assert (2 * ones - bits.size) ** 2 / bits.size < 20
    for byte in range(4):
        counts = np.bincount((bits >> (8 * byte)) & 255, minlength=256)
        expected = bits.size / 256
        assert 150 < ((counts - expected) ** 2 / expected).sum() < 390  # 255 +- 6 standard deviations
    assert np.unique(bits).size > bits.size - 10  # what a birthday allows: one collision is expected


def test_each_bit_of_an_index_turns_half_of_the_bits():
    """Avalanche: whatever index bit differs, each of the 32 bits differs in half of the elements."""
    bits = np.asarray(bits_of(SEED, SHAPE))
    for axis in (1, 2):
        for index_bit in range(7):
            other = np.take(bits, np.arange(128) ^ (1 << index_bit), axis=axis)
            turned = np.array([((bits ^ other) >> position & 1).mean() for position in range(32)])
            assert np.abs(turned - 0.5).max() < 2 * NOISE, (axis, index_bit)


def test_neighbours_along_any_axis_are_independent():
    u = uniform(SEED)
    for axis in range(3):
        for lag in (1, 2, 3, 4, 8, 16, 32, 64):
            if lag < SHAPE[axis]:
                head, tail = (np.take(u, range(*r), axis=axis) for r in ((0, SHAPE[axis] - lag), (lag, SHAPE[axis])))
                assert abs(correlation(head, tail)) < 2 * NOISE, (axis, lag)
    diagonal = correlation(u[:, :-1, :-1], u[:, 1:, 1:])
    assert abs(diagonal) < NOISE
    assert abs(np.corrcoef(u[0])[np.triu_indices(128, 1)]).max() < 6 / np.sqrt(128)  # any two rows, at 5.5 sigma or so


def test_layers_sites_and_steps_draw_independently():
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(3)]
    seeds = [dropout_seed(key) for key in keys]
    assert seeds[0].dtype == jnp.uint32 and seeds[0].shape == (2,)
    seeds += [fold_seed(seeds[0], layer) for layer in range(4)]
    seeds += [fold_seed(fold_seed(seeds[0], layer), site) for layer in range(2) for site in range(3)]
    draws = np.array([uniform(seed).ravel() for seed in seeds])
    off_diagonal = np.corrcoef(draws)[np.triu_indices(len(seeds), 1)]
    assert np.abs(off_diagonal).max() < NOISE


@pytest.mark.parametrize("word", [0, 1])
def test_seeds_that_differ_in_one_bit_draw_independently(word):
    u = uniform(SEED)
    for bit in (0, 1, 7, 15, 16, 30, 31):
        other = uniform(SEED.at[word].set(SEED[word] ^ jnp.uint32(1 << bit)))
        assert abs(correlation(u, other)) < NOISE, bit


def test_an_index_of_a_layer_may_be_traced():
    np.testing.assert_array_equal(jax.jit(fold_seed)(SEED, jnp.uint32(3)), fold_seed(SEED, 3))


@pytest.mark.parametrize("spec", [P("data", None, "tensor"), P(None, "data", None), P(("data", "tensor"))])
def test_dropout_is_the_same_on_any_mesh(spec):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 6)), jnp.float32)
    one = drop(x, 0.4, SEED)
    sharding = NamedSharding(mesh, spec)
    many = jax.jit(dropout, static_argnums=1, out_shardings=sharding)(jax.device_put(x, sharding), 0.4, SEED)
    assert len(many.sharding.device_set) == 8 and many.sharding.spec == spec
    np.testing.assert_array_equal(many, one)
