"""What the models refuse: inputs of another dtype, shape or range, seen wherever values are at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import BertConfig, BertForPreTraining, BertModel, mask_tokens, maskable

CONFIG = BertConfig.tiny(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
)
MODEL = BertModel(CONFIG)
IDS = np.random.default_rng(0).integers(5, 40, (2, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), IDS)["params"]


@jax.jit
def jitted(params, input_ids, **inputs):
    return MODEL.apply({"params": params}, input_ids, **inputs)


def call(params, **inputs):
    return MODEL.apply({"params": params}, **{"input_ids": IDS, **inputs})


def with_value(value):
    ids = np.zeros_like(IDS)
    ids[1, 2] = value
    return ids


# Out of range: only values show it.
VALUES = [
    ("input_ids", 40, r"between 0 and 39 \(vocab_size\).* 40"),
    ("input_ids", -1, r"between 0 and 39 \(vocab_size\).* -1"),
    ("token_type_ids", 2, r"between 0 and 1 \(type_vocab_size\).* 2"),
    ("token_type_ids", -1, r"between 0 and 1 \(type_vocab_size\).* -1"),
    ("position_ids", 32, r"between 0 and 31 \(max_position_embeddings\).* 32"),
    ("position_ids", -1, r"between 0 and 31 \(max_position_embeddings\).* -1"),
]


@pytest.mark.parametrize(("name", "value", "words"), VALUES)
def test_ids_out_of_range_are_refused(params, name, value, words):
    for convert in (np.asarray, jnp.asarray, np.ndarray.tolist):
        with pytest.raises(ValueError, match=f"{name} must lie {words}"):
            call(params, **{name: convert(with_value(value))})


def test_ids_out_of_range_are_nan_under_jit(params):
    for name, value, _ in VALUES:
        out = jitted(params, **{"input_ids": IDS, name: with_value(value)})
        assert np.isnan(out.last_hidden_state[1]).all() and np.isfinite(out.last_hidden_state[0]).all(), (name, value)


NAMES = ["input_ids", "token_type_ids", "attention_mask", "position_ids", "segment_ids"]


@pytest.mark.parametrize("run", [call, jitted], ids=["eager", "jit"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_shapes_are_refused_by_name(params, run, name):
    ones = np.ones_like(IDS)
    wrong = [ones[0], ones[None], ones[:, :0], ones[:0], ones + 0.5]
    if name != "input_ids":
        wrong += [ones[:1], ones[:, :5], ones[:, :1], np.ones((4, 3), np.int32)]
    if name != "attention_mask":
        wrong += [ones.astype(bool), ones.astype(np.float32)]
    for value in wrong:
        with pytest.raises(ValueError, match=name):
            run(params, **{"input_ids": IDS, name: value})


@pytest.mark.parametrize("value", [[[1, 2], [3]], [["a", "b"]], "text", 7, [], [[]], None, {"a": 1}])
def test_what_is_no_array_is_refused(params, value):
    with pytest.raises(ValueError, match="input_ids"):
        call(params, input_ids=value)


def test_masks_of_other_numbers_are_refused(params):
    for wrong in (-1e9, 0.3, np.nan, 2):
        with pytest.raises(ValueError, match="attention_mask must be 1 or True for tokens"):
            call(params, attention_mask=np.where(np.arange(6)[None, :] < [[6], [4]], 1.0, wrong))


def test_lists_and_narrow_integers_are_read(params):
    mask = np.arange(6)[None, :] < np.array([[6], [4]])
    expected = call(params, attention_mask=mask)
    for ids, other in ((IDS.tolist(), mask.tolist()), (IDS.astype(np.int8), mask.astype(np.float32))):
        again = call(params, input_ids=ids, attention_mask=other)
        np.testing.assert_array_equal(again.last_hidden_state, expected.last_hidden_state)


def test_masked_positions(params):
    model = BertForPreTraining(CONFIG)
    all_params = jax.jit(model.init)(jax.random.key(0), IDS)["params"]

    def run(at):
        return model.apply({"params": all_params}, IDS, masked_positions=at).prediction_logits

    for value in (6, -1, 2**31 - 1):
        at = np.array([[0, 1], [2, value]])
        with pytest.raises(ValueError, match=rf"masked_positions must lie between 0 and 5 .*6 tokens.* {value}"):
            run(at)
        out = np.asarray(jax.jit(run)(at))
        assert np.isnan(out[1, 1]).all() and np.isfinite(out[0]).all() and np.isfinite(out[1, 0]).all()
    for wrong in (np.zeros(2, int), np.zeros((1, 2), int), np.zeros((2, 0), int), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="masked_positions"):
            run(wrong)
    np.testing.assert_array_equal(jax.jit(run)(np.array([[5], [0]], np.uint8)), jax.jit(run)(np.array([[5], [0]])))


# --- the masked-LM objective -------------------------------------------------------------------------------------

OPTIONS = {"num_predictions": 2, "mask_id": 4, "vocab_size": 40}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids_BL": with_value(40)}, "input_ids_BL must lie between 0 and 39"),
        ({"input_ids_BL": with_value(-1)}, "input_ids_BL must lie between 0 and 39"),
        ({"input_ids_BL": IDS.astype(np.int64) + 2**32}, "input_ids_BL must lie between 0 and 39"),
        ({"input_ids_BL": IDS * 1.0}, "input_ids_BL must be integers, not float64"),
        ({"input_ids_BL": IDS[0]}, "input_ids_BL"),
        ({"maskable_BL": IDS}, r"maskable_BL must be booleans \[2, 6\], not int32"),
        ({"maskable_BL": IDS[:1] > 0}, r"maskable_BL must be booleans \[2, 6\], not bool \[1, 6\]"),
        ({"continuation_V": np.zeros(39, bool)}, r"continuation_V must be booleans \[40\]"),
        ({"continuation_V": np.zeros(40, int)}, r"continuation_V must be booleans"),
        ({"special_ids": [40]}, "special_ids must lie between 0 and 39"),
        ({"special_ids": [-1]}, "special_ids must lie between 0 and 39"),
        ({"special_ids": [1.5]}, "special_ids must be integers"),
        ({"mask_id": 40}, "mask_id must lie between 0 and 39"),
        ({"mask_id": -1}, "mask_id must lie between 0 and 39"),
        ({"mask_id": 1.5}, "mask_id must be integers"),
        ({"vocab_size": 40.5}, "vocab_size must be an integer"),
        ({"num_predictions": 2.0}, "num_predictions must be an integer"),
        ({"num_predictions": True}, "num_predictions must be an integer"),
        ({"rate": float("nan")}, "rate must be a number"),
        ({"rate": 1.5}, "rate must be a number"),
    ],
)
def test_masking_refuses(change, words):
    arguments = {"input_ids_BL": IDS, "maskable_BL": IDS > 4, "key": jax.random.key(0), **OPTIONS, **change}
    with pytest.raises(ValueError, match=words):
        mask_tokens(**arguments)


def test_maskable_refuses():
    for ids, special in ((IDS * 1.0, [0]), (IDS[0], [0]), (IDS, [0.5]), (IDS, 3), (IDS, [[0]]), ([["a"]], [0])):
        with pytest.raises(ValueError, match=r"input_ids_BL|special_ids"):
            maskable(ids, special)
    assert maskable(IDS.tolist(), [int(IDS[0, 0])])[0, 0] == False  # noqa: E712
    # Nothing needs to be special.
    jax.eval_shape(lambda: mask_tokens(IDS, IDS > 4, jax.random.key(0), **OPTIONS, special_ids=()))
