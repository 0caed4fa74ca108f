import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import LearnedPositions, hierarchical_positions, sinusoidal_positions


def paper_table(length, features):
    """Vaswani et al. 2017, section 3.5, in Python's float64."""
    table = np.zeros((length, features))
    for p in range(length):
        for i in range(features // 2):
            angle = p / 10000 ** (2 * i / features)
            table[p, 2 * i], table[p, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


@pytest.mark.parametrize(("length", "features"), [(1, 2), (600, 6), (130, 64)])
def test_sinusoids_follow_the_formula_in_both_layouts(length, features):
    expected = paper_table(length, features)
    table = sinusoidal_positions(length, features)
    assert table.shape == (length, features) and table.dtype == np.float32
    np.testing.assert_allclose(table, expected, rtol=0, atol=1e-6)
    halves = np.concatenate([expected[:, 0::2], expected[:, 1::2]], axis=1)
    np.testing.assert_allclose(sinusoidal_positions(length, features, "halves"), halves, rtol=0, atol=1e-6)


def test_halves_are_the_sinusoids_of_marian():
    torch = pytest.importorskip("torch")
    marian = pytest.importorskip("transformers.models.marian.modeling_marian")
    module = marian.MarianSinusoidalPositionalEmbedding(40, 16)
    with torch.no_grad():
        module.weight.copy_(module.create_weight())
        theirs = module((1, 40)).reshape(40, 16).numpy()
    np.testing.assert_allclose(sinusoidal_positions(40, 16, "halves"), theirs, rtol=0, atol=1e-6)


def test_sinusoids_refuse_an_odd_width_and_an_unknown_layout():
    with pytest.raises(ValueError, match="even width, not 7"):
        sinusoidal_positions(4, 7)
    with pytest.raises(ValueError, match="'sideways'"):
        sinusoidal_positions(4, 8, "sideways")


@pytest.mark.parametrize(("length", "features"), [(0, 8), (-1, 8), (4.0, 8), (2**40, 8), (4, 0), (4, -2), (True, 8)])
def test_sinusoids_refuse_sizes_that_are_none(length, features):
    with pytest.raises(ValueError, match="(length|features) must be an integer from 1 to"):
        sinusoidal_positions(length, features)


@pytest.mark.parametrize("alpha", [0.4, 0.7])
def test_hierarchical_positions_follow_the_formula_and_keep_the_learned_rows(alpha):
    n, features = 5, 3
    learned = np.random.default_rng(0).normal(size=(n, features)).astype(np.float32)
    p = learned.astype(np.float64)
    u = (p - alpha * p[0]) / (1 - alpha)
    expected = np.array([alpha * u[i] + (1 - alpha) * u[j] for i in range(n) for j in range(n)])
    np.testing.assert_allclose(expected[:n], p, atol=1e-12)  # the formula itself leaves the learned rows alone

    table = np.asarray(hierarchical_positions(jnp.asarray(learned), alpha=alpha))
    assert table.shape == (n * n, features) and table.dtype == np.float32
    np.testing.assert_allclose(table, expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(table[:n], learned)
    assert len(np.unique(table.round(4), axis=0)) == n * n  # every position has a row of its own


@pytest.mark.parametrize("rows", [1, 5, 6, 25])
def test_hierarchical_positions_stop_at_the_row_asked_for(rows):
    learned = jnp.arange(10.0).reshape(5, 2)
    whole = hierarchical_positions(learned)
    np.testing.assert_array_equal(hierarchical_positions(learned, rows), whole[:rows])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 26}, "reaches 25"),
        ({"rows": 0}, "not 0"),
        ({"rows": 2.0}, "rows must be an integer, not 2.0"),
        ({"alpha": 0.5}, "0.5"),
        ({"alpha": 1.0}, "not 1.0"),
        ({"alpha": math.nan}, "alpha must be a number above 0 below 1, not nan"),
        ({"table_PD": jnp.zeros(5)}, r"floating-point \[positions, features\], not float32 \[5\]"),
        ({"table_PD": jnp.zeros((0, 2))}, r"not float32 \[0, 2\]"),
        ({"table_PD": jnp.zeros((5, 2), int)}, r"not int32 \[5, 2\]"),
    ],
)
def test_hierarchical_positions_refuse_what_has_no_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        hierarchical_positions(**{"table_PD": jnp.zeros((5, 2)), **options})


@pytest.mark.parametrize("features", [32, 33])
def test_a_learned_table_begins_as_sinusoids_of_the_size_asked_for(features):
    model = LearnedPositions(50, features, stddev=0.02, sinusoid_range=0.3)
    table_PD = np.asarray(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]["embedding"])
    assert table_PD.shape == (50, features)
    pairs = features // 2 * 2  # of an odd width the last sine has no cosine
    assert np.sqrt(np.mean(table_PD[:, :pairs] ** 2)) == pytest.approx(0.3, rel=1e-6)
    products_PP = table_PD[:, :pairs] @ table_PD[:, :pairs].T
    for distance in (0, 1, 7):  # products depend on the distance alone
        np.testing.assert_allclose(np.diag(products_PP, distance), products_PP[0, distance], atol=1e-5)
    assert products_PP[0, 0] > products_PP[0, 1] > products_PP[0, 7]
