"""Mask-predict against its definition, spelled out for one row at a time in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import BertConfig, BertForMaskedLM, mask_predict

V, L, MASK = 30, 14, 4
SPECIAL = (0, 1, 2, 3, 4)
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bert():
    config = BertConfig.tiny(
        vocab_size=V,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=L,
        initializer_range=2.0,
    )
    model = BertForMaskedLM(config)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


@pytest.fixture(scope="module")
def logits_of(bert):
    model, params = bert
    return jax.jit(lambda ids, types, mask: model.apply({"params": params}, ids, types, mask).logits)


def batch():
    """Runs of [MASK] of several lengths, one row with padding and two types."""
    ids = rng.integers(5, V, (4, L)).astype(np.int32)
    ids[0, 3:12] = ids[1, 1] = ids[2, [2, 3, 4, 8, 9]] = ids[3, 1:-1] = MASK
    mask = np.ones((4, L), np.int32)
    ids[2, 10:], mask[2, 10:] = 0, 0
    types = np.zeros((4, L), np.int32)
    types[2, 6:10] = 1
    return ids, types, mask


def oracle(logits_of, ids, types, mask, iterations):
    """One row: predict all; then mask the least probable again, fewer each time."""
    slots = np.flatnonzero(ids == MASK)
    ids, probabilities = ids.copy(), np.ones(len(ids))
    probabilities[slots] = 0
    for t in range(iterations):
        count = len(slots) * (iterations - t) // iterations
        again = slots[np.argsort(probabilities[slots], kind="stable")[:count]]
        ids[again] = MASK
        logits = np.asarray(logits_of(ids[None], types[None], mask[None]))[0].astype(np.float64)
        logits[:, list(SPECIAL)] = -np.inf
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        ids[again], probabilities[again] = chances[again].argmax(-1), chances[again].max(-1)
    return ids, probabilities


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_it_is_its_definition(bert, logits_of, iterations):
    ids, types, mask = batch()
    out = mask_predict(*bert, ids, types, mask, mask_id=MASK, special_ids=SPECIAL, iterations=iterations)
    for row in range(len(ids)):
        tokens, probabilities = oracle(logits_of, ids[row], types[row], mask[row], iterations)
        np.testing.assert_array_equal(out.input_ids[row], tokens)
        np.testing.assert_allclose(out.probabilities[row], probabilities, rtol=1e-4)
    filled = np.asarray(out.input_ids)
    np.testing.assert_array_equal(filled[ids != MASK], ids[ids != MASK])
    assert not np.isin(filled[ids == MASK], SPECIAL).any()


def test_iterations_change_the_answer(bert):
    """Otherwise the test above would see nothing of the second pass."""
    ids, types, mask = batch()
    fill = functools.partial(mask_predict, *bert, ids, types, mask, mask_id=MASK, special_ids=SPECIAL)
    one, ten = fill(iterations=1), fill(iterations=10)
    assert (np.asarray(one.input_ids) != np.asarray(ten.input_ids)).any()
    np.testing.assert_array_equal(one.input_ids[1], ten.input_ids[1])  # one [MASK] alone


def test_little_is_compiled(bert):
    from bert_jax.mask_predict import _mask_predict

    _mask_predict.clear_cache()
    for count, iterations in ((5, 2), (7, 3), (8, 4)):
        ids = np.full((2, L), 7)
        ids[:, :count] = MASK
        mask_predict(*bert, ids, mask_id=MASK, special_ids=SPECIAL, iterations=iterations)
    assert _mask_predict._cache_size() == 1


MASKED = [[2, MASK, 3], [2, 7, MASK]]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (([[2, 7, 3], [2, MASK, 3]],), {}, r"rows 0 of input_ids hold no \[MASK\]"),
        (([2, MASK, 3],), {}, "input_ids must be"),
        (([[2.0, 4.0]],), {}, "input_ids must be integers"),
        (([[2, MASK, V]],), {}, "input_ids must lie between 0 and 29"),
        (([[MASK] * (L + 1)],), {}, f"{L + 1} tokens a row, but max_position_embeddings is {L}"),
        ((MASKED, [[0, 0, 2], [0, 0, 0]]), {}, "token_type_ids must lie between"),
        ((MASKED, [[0, 0]]), {}, "token_type_ids must have the shape"),
        ((MASKED, None, [[1, 1]]), {}, "attention_mask must have the shape"),
        ((MASKED, None, [[1, 1, 1], [1, 1, 0]]), {}, r"rows 1 of input_ids hold a \[MASK\] that attention_mask calls"),
        ((MASKED,), {"iterations": 0}, "iterations must be an integer from 1"),
        ((MASKED,), {"iterations": 2.0}, "iterations must be an integer"),
        ((MASKED,), {"mask_id": V}, "mask_id and special_ids must lie between 0 and 29"),
        ((MASKED,), {"special_ids": [-1]}, "mask_id and special_ids must lie between 0 and 29"),
        ((MASKED,), {"special_ids": range(V)}, "nothing is left to fill in"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(bert, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        mask_predict(*bert, *inputs, **{"mask_id": MASK, "special_ids": SPECIAL, **options})


def test_parameters_that_are_nan_fill_in_nothing(bert):
    model, params = bert
    broken = {**params, "predictions": jax.tree.map(lambda x: x * jnp.nan, params["predictions"])}
    with pytest.raises(ValueError, match="rows 0, 1 of input_ids have answers that are not finite"):
        mask_predict(model, broken, MASKED, mask_id=MASK, special_ids=SPECIAL)


def test_it_is_called_outside_of_jit(bert):
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda ids: mask_predict(*bert, ids, mask_id=MASK, special_ids=SPECIAL))(jnp.asarray(MASKED))
