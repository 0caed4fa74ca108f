"""What has no right answer gets none: ids out of range, arguments that do not fit, parameters that are NaN."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import (
    Embed,
    KVCache,
    LearnedPositions,
    SearchOptions,
    Transformer,
    TransformerConfig,
    beam_search,
    generate,
    greedy_search,
    logical_axes,
)
from transformer_jax.decoding import reordering
from transformer_jax.layers import Owner, dropout

SOURCES = np.array([[5, 6, 9, 7], [8, 4, 0, 0], [3, 0, 0, 0]])
V = 11


# --- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint32"])
@pytest.mark.parametrize("layer", [Embed, LearnedPositions])
def test_rows_that_a_table_does_not_have_are_refused_or_nan(layer, kind):
    rows = 100
    module, table = layer(rows, 2, stddev=1.0), np.arange(200, dtype=np.float32).reshape(rows, 2)
    ids = np.array([[0, 99, 100, 127, -1, -100]]).astype(kind)
    y = jax.jit(module.apply)({"params": {"embedding": table}}, ids)
    np.testing.assert_array_equal(y[0, :2], table[[0, 99]])
    assert np.isnan(y[0, 2:]).all()
    with pytest.raises(ValueError, match="ids of the table .* must lie between 0 and 99 .*: 4 of 6 do not"):
        module.apply({"params": {"embedding": table}}, ids)


@pytest.fixture(scope="module", params=["interleaved", "learned"])
def teacher(request, make_transformer):
    model, params = make_transformer(positions=request.param)
    return lambda *args, **options: model.apply({"params": params}, *args, **options).logits


def test_ids_and_positions_out_of_range_are_refused_or_nan(teacher):
    ids, target = SOURCES.astype(np.int32), np.full((3, 2), 4)
    run = jax.jit(teacher)
    at = np.broadcast_to(np.arange(4), (3, 4)).astype(np.int32)
    assert np.isfinite(run(ids, target, position_ids=at)).all()
    for wrong in (-1, V, 10**6):
        broken = np.where(ids == 8, wrong, ids)
        y = run(broken, target, position_ids=at)
        assert np.isnan(y[1]).all() and np.isfinite(y[::2]).all()
        with pytest.raises(ValueError, match=f"'embedding' must lie between 0 and 10 .* such as {wrong}"):
            teacher(broken, target)
    for wrong in (-1, 32):
        y = run(ids, target, position_ids=np.where(ids == 8, wrong, at))
        assert np.isnan(y[1]).all() and np.isfinite(y[::2]).all()
        with pytest.raises(ValueError, match=f"'positions' must lie between 0 and 31 .* such as {wrong}"):
            teacher(ids, target, position_ids=np.where(ids == 8, wrong, at))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": [1, 2]}, "input_ids must be .rows, tokens."),
        ({"input_ids": np.zeros((0, 4), int)}, "input_ids must be .rows, tokens."),
        ({"input_ids": np.zeros((3, 0), int)}, "input_ids must be .rows, tokens."),
        ({"input_ids": SOURCES.astype(float)}, "input_ids must be integers, not float64"),
        ({"input_ids": SOURCES[:1]}, "input_ids have 1 rows, but decoder_input_ids 3"),
        ({"decoder_input_ids": [[]] * 3}, "decoder_input_ids must be .rows, tokens."),
        ({"attention_mask": SOURCES[:1] > 0}, r"attention_mask must have the shape \(3, 4\).*not \(1, 4\)"),
        ({"attention_mask": (SOURCES == 0) * -1e9}, "additive mask"),
        ({"position_ids": np.zeros((2, 4), int)}, r"position_ids must have the shape \(3, 4\), not \(2, 4\)"),
        ({"decoder_position_ids": [[0, 1, 2]]}, r"position_ids must have the shape \(3, 2\), not \(1, 3\)"),
        ({"segment_ids": [[0] * 4], "decoder_segment_ids": [[0] * 2] * 3}, r"segment_ids .*\(3, 4\), not \(1, 4\)"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(tiny, arguments, message):
    model, params = tiny
    target = [[0, 4]] * 3
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, **{"input_ids": SOURCES, "decoder_input_ids": target, **arguments})


def test_ids_and_masks_may_be_lists(tiny):
    model, params = tiny
    lists = model.apply({"params": params}, SOURCES.tolist(), [[0, 4]] * 3, (SOURCES > 0).astype(int).tolist())
    arrays = model.apply({"params": params}, SOURCES, np.array([[0, 4]] * 3), SOURCES > 0)
    np.testing.assert_array_equal(lists.logits, arrays.logits)


@pytest.mark.parametrize("positions", ["interleaved", "learned"])
def test_tokens_past_the_cache_are_refused_or_nan(make_transformer, positions):
    model, params = make_transformer(positions=positions)

    def decode(params, ids, memory, cache):
        return model.apply({"params": params}, ids, memory, cache=cache, method="decode")

    memory, ids = jnp.ones((1, 2, 8)), jnp.full((1, 2), 4)
    _, cache = jax.jit(decode)(params, ids, memory, model.apply({"params": params}, 1, 3, method="empty_cache"))
    logits, _ = jax.jit(decode)(params, ids, memory, cache)
    assert np.isnan(logits[0, 1]).all()
    with pytest.raises(ValueError, match="the cache has 3 slots, 2 of them filled: 2 more do not fit"):
        decode(params, ids, memory, cache)
    with pytest.raises(ValueError, match="2 of them filled"):
        KVCache.empty(1, 3, 1, 2)._replace(length=jnp.int32(2)).append(jnp.ones((1, 2, 1, 2)), jnp.ones((1, 2, 1, 2)))


# --- searching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": [[5, V]]}, "input_ids must lie between 0 and 10 .*vocabulary of 11.*1 of 2 do not, such as 11"),
        ({"input_ids": [[5, -1]]}, "such as -1"),
        ({"input_ids": [[5, 2**40]]}, "such as 1099511627776"),
        ({"input_ids": []}, "input_ids must be .rows, tokens."),
        ({"input_ids": [[], []]}, "input_ids must be .rows, tokens."),
        ({"input_ids": [5, 6]}, r"not \(2,\)"),
        ({"input_ids": [[5, 6], [7]]}, "rows of one length"),
        ({"input_ids": [[5.0]]}, "integers, not float64"),
        ({"input_ids": [["a"]]}, "numbers"),
        ({"input_ids": [[5], [0]]}, "rows 1 of input_ids hold no token that is attended to"),
        ({"attention_mask": [[1, 0]]}, r"attention_mask must have the shape \(1, 1\), as the ids have, not \(1, 2\)"),
        ({"attention_mask": [[0]]}, "rows 0 of input_ids hold no token"),
        ({"attention_mask": [[-1e9]]}, "additive mask"),
        *[({"length_penalty": x}, "length_penalty must be a number from -5 to 5") for x in (math.nan, math.inf, 1e6)],
        *[({"num_beams": n}, "num_beams must be an integer from 1 to 1024") for n in (-1, 2.0, True, 10**9)],
        *[({"max_length": n}, "max_length must be an integer from 2 to") for n in (0, -5, 8.0, 10**10, None)],
        *[({"early_stopping": x}, "early_stopping must be True or False or 'never'") for x in (1, 0, None, [])],
        ({"preset": []}, r"preset must be 'hf', 'paper' or 'marian', not \[\]"),
    ],
)
def test_generate_refuses_what_it_cannot_mean(tiny, arguments, message):
    model, params = tiny
    with pytest.raises(ValueError, match=message):
        generate(model, params, **{"input_ids": [[5]], **arguments})


def test_generate_takes_lists(tiny):
    model, params = tiny
    options = {"num_beams": 1, "max_length": 4}
    np.testing.assert_array_equal(
        generate(model, params, SOURCES.tolist(), **options), generate(model, params, SOURCES, **options)
    )


@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_search_over_scores_that_are_not_finite(tiny, num_beams):
    model, params = tiny
    options = {"num_beams": num_beams, "max_length": 6}
    search = jax.jit(lambda params, ids, mask: generate(model, params, ids, mask, **options))
    expected = np.asarray(generate(model, params, SOURCES, **options))
    np.testing.assert_array_equal(search(params, SOURCES, SOURCES > 0), expected)
    spoiled = np.array([0, *[-1] * 5])
    for ids, mask in (
        (np.where(SOURCES == 8, V, SOURCES), SOURCES > 0),
        (np.where(SOURCES == 8, -1, SOURCES), SOURCES != 0),
        (SOURCES, (SOURCES > 0) & ([[True], [False], [True]])),
    ):
        found = search(params, ids, mask)
        np.testing.assert_array_equal(found, np.where([[False], [True], [False]], spoiled, expected))
    for value in (np.nan, np.inf):
        broken = jax.tree.map(lambda leaf, value=value: jnp.full_like(leaf, value), params)
        np.testing.assert_array_equal(search(broken, SOURCES, SOURCES > 0), [spoiled] * 3)
        with pytest.raises(ValueError, match="rows 0, 1, 2 of input_ids have scores that are not finite"):
            generate(model, broken, SOURCES, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("when", [0, 2])
def test_a_row_that_breaks_late_is_broken_whole_and_alone(value, num_beams, when):
    """The second of three sentences gets `value` for all words, or for one (unless that is a mask), at step `when`."""
    words = np.random.default_rng(0).normal(size=(8, V)).astype(np.float32)
    words[:, 1] = -9.0  # no end before the last step
    options = SearchOptions(6, 0, 1, 0, num_beams)

    def step(break_it, ids_R, state):
        time, row_R = state
        logits = jnp.asarray(words)[(ids_R + time) % 8]
        hit = (row_R == 1) & (time == when) & break_it
        columns = np.arange(V) < (V if value == -np.inf else 1)
        return jnp.where(hit[:, None] & columns[None], value, logits), (time + 1, row_R)

    @jax.jit
    def run(break_it):
        cache = (jnp.int32(0), jnp.repeat(jnp.arange(3), num_beams))
        search = greedy_search if num_beams == 1 else beam_search
        return search(reordering(functools.partial(step, break_it)), cache, 3, options)

    whole, broken = run(False), run(True)
    ids, expected = (broken, whole) if num_beams == 1 else (broken[0], whole[0])
    assert (np.asarray(ids)[1, ..., 1:] == -1).all() and (np.asarray(ids)[1, ..., 0] == 0).all()
    np.testing.assert_array_equal(ids[::2], expected[::2])
    if num_beams > 1:
        assert np.isnan(broken[1][1]).all()
        np.testing.assert_array_equal(broken[1][::2], whole[1][::2])


@pytest.mark.parametrize("search", [greedy_search, beam_search])
def test_searches_check_their_options(search):
    for change in ({"max_length": 1}, {"num_beams": 0}, {"length_penalty": math.nan}, {"eos_id": -1}, {"preset": "x"}):
        options = SearchOptions(6, 0, 1, 0)._replace(**change)
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
            search(reordering(lambda ids, cache: (jnp.zeros((len(ids), V)), cache)), None, 2, options)


# --- layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [math.nan, 1.0, 2, -0.1, "0.1"])
def test_dropout_refuses_rates_that_are_none(rate):
    with pytest.raises(ValueError, match="dropout rate must be a number from 0 below 1"):
        dropout(jnp.ones((2, 2)), rate, jnp.zeros(2, jnp.uint32))


@pytest.mark.parametrize("seed", [np.zeros(2, np.int32), np.zeros(3, np.uint32), np.float32(1)])
def test_dropout_refuses_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match=r"a seed is uint32 \[2\] \(see dropout_seed\), not"):
        dropout(jnp.ones((2, 2)), 0.5, seed)


def test_a_model_of_integers_is_refused(tiny):
    _, params = tiny
    model = Transformer(TransformerConfig.tiny(V, features=8, num_heads=2), dtype=jnp.int32)
    with pytest.raises(ValueError, match="the table 'positions' must be floating, not int32"):
        model.apply({"params": params}, SOURCES, SOURCES)


def test_axes_in_one_word_are_refused():
    class OneWord(Owner):
        @nn.nowrap
        def parameter_axes(self):
            return {"scale": "ab"}

        def __call__(self, x):
            return x * self.scale

        def setup(self):
            self.scale = self.param("scale", jax.nn.initializers.ones, (2, 2))

    with pytest.raises(ValueError, match="declares the axes ab"):
        logical_axes(OneWord(), jnp.ones((2, 2)))
