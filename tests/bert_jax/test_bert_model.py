"""BertModel and its heads: the parameter contract, padding, packing, positions, dropout, both ways of running."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax import BertConfig, BertForMaskedLM, BertForNextSentencePrediction, BertForPreTraining, BertModel
from transformer_jax import logical_axes, stack_layers

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_act": "gelu",
    "initializer_range": 0.5,
}
CONFIG = BertConfig.tiny(**SIZES)
MODEL = BertForPreTraining(CONFIG)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


@jax.jit
def hidden(params, input_ids, **inputs):
    return BertModel(CONFIG).apply({"params": params["bert"]}, input_ids, **inputs)


@functools.partial(jax.jit, static_argnames=("model", "deterministic"))
def run(model, params, *args, key=None, **kwargs):
    return model.apply({"params": params}, *args, rngs={} if key is None else {"dropout": key}, **kwargs)


def ids(rows, length, seed=0):
    return np.random.default_rng(seed).integers(5, 40, (rows, length)).astype(np.int32)


def test_golden_parameters(golden):
    assert golden.parameter_listing() == (golden.HERE / "golden_parameters.txt").read_text()


def test_every_parameter_has_logical_axes():
    axes = logical_axes(MODEL, jnp.zeros((1, 4), jnp.int32))
    assert axes["predictions"]["bias"] == ("vocab",)
    assert axes["bert"]["embeddings"]["word"]["embedding"] == ("vocab", "embed")
    assert axes["bert"]["embeddings"]["token_type"]["embedding"] == (None, "embed")
    for leaf in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)):
        named = [name for name in leaf if name is not None]
        assert len(named) == len(set(named))


def test_padding_changes_nothing(params):
    tokens = ids(3, 12)
    mask = np.arange(12)[None, :] < np.array([12, 7, 1])[:, None]
    out = hidden(params, tokens, attention_mask=mask.astype(np.int32))
    other = np.where(mask, tokens, 39 - tokens + 5)
    again = hidden(params, other, attention_mask=mask)
    assert (np.asarray(out.last_hidden_state)[mask] == np.asarray(again.last_hidden_state)[mask]).all()
    np.testing.assert_array_equal(out.pooler_output, again.pooler_output)
    alone = hidden(params, tokens[1:2, :7])
    np.testing.assert_allclose(out.last_hidden_state[1:2, :7], alone.last_hidden_state, atol=2e-5)
    changed = hidden(params, np.where(np.arange(12)[None, :] == 6, 5 + (tokens - 4) % 35, tokens), attention_mask=mask)
    assert (np.asarray(changed.last_hidden_state)[1, 0] != np.asarray(out.last_hidden_state)[1, 0]).any()


def test_packed_examples_do_not_see_each_other(params):
    tokens = ids(2, 12)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 3 + [2] * 9])
    positions = np.array([[*range(5), *range(4), 0, 1, 2], [*range(3), *range(9)]])
    packed = {"segment_ids": segments, "position_ids": positions}
    out = np.asarray(hidden(params, tokens, **packed).last_hidden_state)
    for segment in (0, 1, 2):
        perturbed = np.where(segments == segment, 44 - tokens, tokens)
        again = np.asarray(hidden(params, perturbed, **packed).last_hidden_state)
        assert (again[segments != segment] == out[segments != segment]).all()
        if (segments == segment).any():
            assert (again[segments == segment] != out[segments == segment]).any()
    for row, begin, end in ((0, 0, 5), (0, 5, 9), (1, 0, 3), (1, 3, 12)):
        alone = hidden(params, tokens[row : row + 1, begin:end]).last_hidden_state
        np.testing.assert_allclose(out[row : row + 1, begin:end], alone, atol=2e-5)


def test_types_and_positions_are_read(params):
    tokens = ids(1, 6)
    plain = hidden(params, tokens).last_hidden_state
    explicit = hidden(params, tokens, token_type_ids=np.zeros((1, 6), int), position_ids=np.arange(6)[None])
    np.testing.assert_allclose(plain, explicit.last_hidden_state, atol=1e-6)
    for other in ({"token_type_ids": np.ones((1, 6), int)}, {"position_ids": np.arange(1, 7)[None]}):
        assert np.abs(hidden(params, tokens, **other).last_hidden_state - plain).max() > 1e-2


def test_gathered_positions_equal_all_positions(params):
    tokens, at = ids(2, 10), np.array([[1, 4, 9], [2, 3, 0]])
    whole = run(MODEL, params, tokens)
    part = run(MODEL, params, tokens, masked_positions=at)
    assert whole.prediction_logits.shape == (2, 10, 40) and part.prediction_logits.shape == (2, 3, 40)
    picked = np.take_along_axis(np.asarray(whole.prediction_logits), at[:, :, None], 1)
    np.testing.assert_allclose(part.prediction_logits, picked, atol=1e-5)
    np.testing.assert_allclose(part.seq_relationship_logits, whole.seq_relationship_logits, atol=1e-6)


def test_heads_agree_with_each_other(params):
    tokens = ids(2, 8)
    both = run(MODEL, params, tokens)
    bert = {k: v for k, v in params["bert"].items() if k != "pooler"}
    mlm = run(BertForMaskedLM(CONFIG), {"bert": bert, "predictions": params["predictions"]}, tokens)
    np.testing.assert_allclose(mlm.logits, both.prediction_logits, atol=1e-5)
    nsp_params = {"bert": params["bert"], "next_sentence": params["next_sentence"]}
    nsp = run(BertForNextSentencePrediction(CONFIG), nsp_params, tokens)
    np.testing.assert_allclose(nsp.logits, both.seq_relationship_logits, atol=1e-6)


def test_decoder_is_tied_to_the_embeddings(params):
    # Token 39 is not among the inputs: its row of the table is reached only as the decoder's.
    tokens = np.full((1, 4), 7)
    grads = jax.jit(jax.grad(lambda p: MODEL.apply({"params": p}, tokens).prediction_logits[..., 39].sum()))(params)
    assert np.abs(grads["bert"]["embeddings"]["word"]["embedding"][39]).max() > 0
    assert grads["predictions"]["bias"][39] == 4 and grads["predictions"]["bias"][38] == 0


def test_bfloat16_gives_float32_logits(params):
    out = run(BertForPreTraining(CONFIG, jnp.bfloat16), params, ids(2, 8))
    assert out.prediction_logits.dtype == out.seq_relationship_logits.dtype == jnp.float32
    exact = run(MODEL, params, ids(2, 8))
    assert np.abs(out.prediction_logits - exact.prediction_logits).max() < 0.1 * np.abs(exact.prediction_logits).max()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_layers_give_equal_outputs_and_gradients(params, remat):
    scanned = BertForPreTraining(BertConfig.tiny(**SIZES, scan_layers=True, remat=remat))
    tokens, key = ids(2, 8), jax.random.key(3)

    def loss(model, params):
        out = model.apply({"params": params}, tokens, deterministic=False, rngs={"dropout": key})
        return jnp.square(out.prediction_logits).mean() + out.seq_relationship_logits.sum()

    expected = jax.jit(jax.value_and_grad(functools.partial(loss, MODEL)))(params)
    value, grads = jax.jit(jax.value_and_grad(functools.partial(loss, scanned)))(stack_layers(params))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grads, stack_layers(expected[1]))


def test_dropout_needs_a_key_and_follows_it(params):
    tokens = ids(2, 8)
    a, b, c = (run(MODEL, params, tokens, deterministic=False, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(a.prediction_logits, b.prediction_logits)
    assert (np.asarray(a.prediction_logits) != np.asarray(c.prediction_logits)).any()
    with pytest.raises(Exception, match="dropout"):
        run(MODEL, params, tokens, deterministic=False)


def test_sharded_batch_equals_one_device(params):
    tokens = ids(8, 8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(tokens, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, P()))
    key = jax.random.key(1)
    alone = run(MODEL, params, tokens, deterministic=False, key=key)
    spread = run(MODEL, replicated, placed, deterministic=False, key=key)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), alone, spread)


def test_rows_longer_than_the_table(params):
    with pytest.raises(ValueError, match="33 tokens a row, but max_position_embeddings is 32"):
        run(MODEL, params, ids(1, 33))
