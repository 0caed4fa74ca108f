"""The heads: what PyTorch's make of odd configurations, what they give out on request, and what they refuse."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import bert_jax
from bert_jax import (
    BertConfig,
    BertForJointIntentAndSlots,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from transformer_jax import logical_axes, stack_layers
from transformer_jax.attention import MultiHeadAttention

CONFIG = BertConfig.tiny(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    initializer_range=0.5,
    id2label=("a", "b", "c"),
    slot_labels=("O", "B-x", "I-x", "B-y"),
)
IDS = np.random.default_rng(0).integers(5, 40, (2, 3, 6))
MASK = np.arange(6) < np.array([[6, 4, 2], [1, 6, 5]])[:, :, None]
FINE_TUNED = (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertForMultipleChoice,
    BertForJointIntentAndSlots,
)


def inputs(cls):
    return (IDS, MASK) if cls is BertForMultipleChoice else (IDS[:, 0], MASK[:, 0])


@functools.cache
def params_of(model):
    return jax.jit(model.init)(jax.random.key(0), model.example_ids())["params"]


@functools.partial(jax.jit, static_argnames=("model", "deterministic", "output_hidden_states", "output_attentions"))
def run(model, params, ids, mask=None, key=None, **kwargs):
    rngs = {} if key is None else {"dropout": key}
    return model.apply({"params": params}, ids, attention_mask=mask, rngs=rngs, **kwargs)


# --- PyTorch, as recorded ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(golden):
    return np.load(golden.HERE / "golden_heads.npz")


def odd_folder(golden, recorded, key, folder):
    """The folder that PyTorch's library wrote, with the weights that it was given."""
    (folder / "config.json").write_text(str(recorded[f"{key}/config.json"]))
    shapes = json.loads(str(recorded[f"{key}/shapes"]))
    tensors = {name: golden.weight(name, shape) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


ODD = range(3)
CLASSES = [
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
    "BertForJointIntentAndSlots",
]


def test_all_heads_are_recorded(golden):
    assert [*golden.HEADS] == CLASSES and len(golden.ODD) == len(ODD)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("cls", CLASSES)
def test_heads_equal_pytorch_as_recorded(golden, recorded, tmp_path, cls, odd):
    odd = [*golden.ODD][odd]
    key = f"{odd}/{cls}"
    model, params = getattr(bert_jax, cls).from_pretrained(odd_folder(golden, recorded, key, tmp_path))
    out = jax.jit(model.apply)({"params": params}, **golden.odd_inputs(golden.ODD[odd], cls))
    for name in golden.HEADS[cls]:
        np.testing.assert_allclose(getattr(out, name), recorded[f"{key}/{name}"], atol=2e-4)
    assert out.hidden_states is None and out.attentions is None


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_states_equal_pytorch_as_recorded(golden, recorded, tmp_path, odd, scan_layers):
    odd = [*golden.ODD][odd]
    key = f"{odd}/BertModel"
    model, params = BertModel.from_pretrained(odd_folder(golden, recorded, key, tmp_path))
    if scan_layers:
        model = model.clone(config=dataclasses.replace(model.config, scan_layers=True))
        params = stack_layers(params)
    batch = golden.odd_inputs(golden.ODD[odd], "BertModel")
    ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
    out = run(model, params, ids, mask, output_hidden_states=True, output_attentions=True, **batch)
    for name in ("hidden_states", "attentions"):
        expected = recorded[f"{key}/{name}"]
        found = getattr(out, name)
        assert isinstance(found, tuple) and len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == jnp.float32
            np.testing.assert_allclose(ours, theirs, atol=2e-4)
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)
    np.testing.assert_allclose(np.sum(out.attentions, axis=-1), 1, atol=1e-5)


# --- what every head does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", FINE_TUNED)
def test_padding_and_what_is_not_asked_for(cls):
    model = cls(CONFIG)
    ids, mask = inputs(cls)
    out = run(model, params_of(model), ids, mask)
    other = run(model, params_of(model), np.where(mask, ids, 44 - ids), mask)
    for ours, again in zip(jax.tree.leaves(out), jax.tree.leaves(other), strict=True):
        assert ours.dtype == jnp.float32
        used = mask if ours.shape[:-1] == mask.shape else ...
        np.testing.assert_array_equal(ours[used], again[used])
    assert out.hidden_states is None and out.attentions is None


@pytest.mark.parametrize("cls", FINE_TUNED)
def test_classifiers_have_a_dropout_of_their_own(cls):
    still = dataclasses.replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids, mask = inputs(cls)
    expected = run(cls(still), params_of(cls(CONFIG)), ids, mask)
    for rate in (0.5, 0.0):
        model = cls(dataclasses.replace(still, classifier_dropout=rate))
        out = run(model, params_of(cls(CONFIG)), ids, mask, key=jax.random.key(1), deterministic=False)
        for ours, plain in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
            assert (np.abs(ours - plain).max() > 1e-3) == (rate == 0.5)
    # None is the rate of the hidden layers.
    model = cls(dataclasses.replace(CONFIG, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0))
    same = cls(dataclasses.replace(model.config, classifier_dropout=0.5))
    a, b = (
        run(m, params_of(cls(CONFIG)), ids, mask, key=jax.random.key(1), deterministic=False) for m in (model, same)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("cls", [*FINE_TUNED, BertForMaskedLM])
def test_every_parameter_has_logical_axes(cls):
    model = cls(dataclasses.replace(CONFIG, tie_word_embeddings=False))
    axes = logical_axes(model, model.example_ids())
    for part in cls.label_fields:
        assert axes[part] == {"kernel": ("embed", None), "bias": (None,)}
    if cls is BertForMaskedLM:
        assert axes["predictions"]["decoder"] == {"embedding": ("vocab", "embed")}


def test_states_in_bfloat16_and_without_kernels_that_keep_weights():
    model = BertForTokenClassification(CONFIG, jnp.bfloat16)
    ids, mask = inputs(None)
    out = run(model, params_of(BertForTokenClassification(CONFIG)), ids, mask, output_attentions=True)
    assert out.logits.dtype == out.attentions[0].dtype == jnp.float32 and out.hidden_states is None
    assert out.attentions[0].shape == (2, 2, 6, 6) and not out.attentions[0][1, :, :, 1:].any()
    out = run(model, params_of(BertForTokenClassification(CONFIG)), ids, mask, output_hidden_states=True)
    assert [x.dtype for x in out.hidden_states] == [jnp.bfloat16] * 2 and out.attentions is None


def test_weights_are_computed_only_on_request(monkeypatch):
    monkeypatch.setattr(MultiHeadAttention, "weights", lambda *_: pytest.fail("weights were computed"))
    model = BertModel(CONFIG)
    jax.eval_shape(functools.partial(model.apply, output_hidden_states=True), {"params": params_of(model)}, IDS[:, 0])


def test_packed_rows_attend_within_their_segments():
    model = BertModel(CONFIG)
    segments = np.array([[1, 1, 2, 2, 2, 0]] * 2)
    out = run(model, params_of(model), IDS[:, 0], output_attentions=True, segment_ids=segments)
    apart = segments[:, None, :, None] != segments[:, None, None, :]
    assert not (np.asarray(out.attentions[0]) * apart).any() and np.asarray(out.attentions[0])[0, 0, 2, 3] > 0


# --- each head ---------------------------------------------------------------------------------------------------


def test_choices_are_rows_of_their_own():
    model = BertForMultipleChoice(CONFIG)
    out = run(model, params_of(model), IDS, MASK, output_hidden_states=True)
    assert out.logits.shape == (2, 3) and out.hidden_states[0].shape == (6, 6, 16)
    for choice in range(3):
        alone = run(model, params_of(model), IDS[:, choice : choice + 1], MASK[:, choice : choice + 1])
        np.testing.assert_allclose(out.logits[:, choice : choice + 1], alone.logits, atol=1e-5)
    again = model.apply({"params": params_of(model)}, IDS.tolist(), attention_mask=MASK.tolist())
    np.testing.assert_allclose(out.logits, again.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"input_ids": IDS[0]}, r"input_ids must be \[rows, choices, tokens\] .* not \(3, 6\)"),
        ({"input_ids": IDS[:, :0]}, r"input_ids must be \[rows, choices, tokens\]"),
        ({"attention_mask": MASK.swapaxes(0, 1)}, r"attention_mask must have the shape \(2, 3, 6\), not \(3, 2, 6\)"),
        ({"token_type_ids": IDS[:, 0] * 0}, r"token_type_ids must have the shape \(2, 3, 6\)"),
        ({"input_ids": IDS * 1.0}, "input_ids must be integers"),
    ],
)
def test_choices_that_are_refused(wrong, words):
    model = BertForMultipleChoice(CONFIG)
    with pytest.raises(ValueError, match=words):
        model.apply({"params": params_of(model)}, **{"input_ids": IDS, **wrong})


def test_an_untied_decoder_is_a_table_of_its_own():
    model = BertForPreTraining(dataclasses.replace(CONFIG, tie_word_embeddings=False))
    ids = np.full((1, 4), 7)

    def logit(params):
        return model.apply({"params": params}, ids).prediction_logits[..., 39].sum()

    grads = jax.jit(jax.grad(logit))(params_of(model))
    assert not grads["bert"]["embeddings"]["word"]["embedding"][39].any()
    table = grads["predictions"]["decoder"]["embedding"]
    assert np.abs(table[39]).max() > 0 and not table[38].any()


@pytest.mark.parametrize("cls", [BertModel, *FINE_TUNED])
def test_masked_positions_are_for_masked_language_models(cls):
    model = cls(CONFIG)
    with pytest.raises(ValueError, match=f"{cls.__name__} takes no masked_positions"):
        model.apply({"params": params_of(model)}, inputs(cls)[0], masked_positions=np.zeros((2, 1), int))


def test_labels_that_a_head_cannot_have():
    with pytest.raises(ValueError, match="BertForQuestionAnswering has 2 labels, start and end, not 3: .*num_labels=2"):
        BertForQuestionAnswering(CONFIG).parameter_shapes()
    with pytest.raises(ValueError, match="BertForJointIntentAndSlots needs a configuration with slot_labels"):
        BertForJointIntentAndSlots(dataclasses.replace(CONFIG, slot_labels=())).parameter_shapes()
