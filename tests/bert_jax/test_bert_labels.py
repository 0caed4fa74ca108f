"""Labels that are not the file's, more positions than it has, and configurations that do not fit it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from bert_jax import (
    BertForJointIntentAndSlots,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from tests.bert_jax.folders import CONFIG, edit, loads_alone, same, save
from transformer_jax import hierarchical_positions

# --- other labels ------------------------------------------------------------------------------------------------


def test_a_finished_classifier_keeps_its_labels_and_weights(tmp_path):
    for cls in (BertForSequenceClassification, BertForTokenClassification, BertForJointIntentAndSlots):
        folder = tmp_path / cls.__name__
        params = save(cls, folder)
        for options in ({}, {"num_labels": 3}, {"id2label": CONFIG.id2label}, {"slot_labels": ["O", "B-x"]}):
            model, loaded = loads_alone(cls, folder, **options)
            same(loaded, params)
            assert model.config == CONFIG


def test_an_encoder_gets_a_head_for_the_labels_asked_for(tmp_path):
    params = save(BertModel, tmp_path)
    for options, labels in (
        ({"num_labels": 5}, tuple(f"LABEL_{i}" for i in range(5))),
        ({"id2label": ["b", "a"]}, ("b", "a")),
        ({"id2label": {1: "a", 0: "b"}, "num_labels": 2}, ("b", "a")),
        ({"problem_type": "regression", "num_labels": 1}, ("LABEL_0",)),
    ):
        with pytest.warns(
            UserWarning, match="has no classifier; BertForSequenceClassification initialised it"
        ) as caught:
            model, loaded = BertForSequenceClassification.from_pretrained(tmp_path, **options)
        assert len(caught) == 1 and model.config.id2label == labels
        assert model.config.problem_type == options.get("problem_type")
        same(loaded["bert"], params)
        assert loaded["classifier"]["kernel"].shape == (8, len(labels)) and not loaded["classifier"]["bias"].any()


def test_a_classifier_of_other_labels_is_made_anew(tmp_path):
    params = save(BertForSequenceClassification, tmp_path)
    words = r"has a classifier for 3 labels and not for these {} \({}\); .*initialised it .*: classifier/bias, class"
    for labels, said in ((["x", "y"], "x, y"), (["yes", "no", "perhaps"], "yes, no, perhaps")):
        with pytest.warns(UserWarning, match=words.format(len(labels), said)) as caught:
            model, loaded = BertForSequenceClassification.from_pretrained(tmp_path, id2label=labels)
        assert len(caught) == 1 and caught[0].filename == __file__
        assert model.config.id2label == tuple(labels) and loaded["classifier"]["kernel"].shape == (8, len(labels))
        assert not loaded["classifier"]["bias"].any()
        same(loaded["bert"], params["bert"])
    # Tags and intents are looked at each for itself, and all that is new is said in one warning.
    params = save(BertForJointIntentAndSlots, tmp_path)
    with pytest.warns(UserWarning, match="has a slot_classifier for 2 labels and not for these 1") as caught:
        loaded = BertForJointIntentAndSlots.from_pretrained(tmp_path, slot_labels=["O"])[1]
    assert len(caught) == 1
    same(loaded["intent_classifier"], params["intent_classifier"])
    save(BertForTokenClassification, tmp_path)
    with pytest.warns(UserWarning, match="has no pooler and a classifier for 3 labels and not for these 2") as caught:
        BertForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert len(caught) == 1


def test_labels_without_names_are_named(tmp_path):
    params = save(BertForSequenceClassification, tmp_path, dataclasses.replace(CONFIG, id2label=("LABEL_0", "LABEL_1")))
    model, loaded = loads_alone(BertForSequenceClassification, tmp_path, id2label=["no", "yes"])
    same(loaded, params)
    model.save_pretrained(tmp_path, loaded)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}


def test_labels_that_do_not_fit_the_file(tmp_path):
    save(BertForSequenceClassification, tmp_path)
    edit(tmp_path, id2label={"0": "no", "1": "yes"}, label2id=None)
    with pytest.raises(ValueError, match=f"{tmp_path}: its classifier has 3 labels, but 2 are asked for"):
        BertForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its classifier has 3 labels, but 2 are asked for"):
        BertForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    # A classifier of rows is none of choices: their number is no label's.
    with pytest.raises(ValueError, match=r"classifier.bias is \(3,\), not \(1,\).*"):
        BertForMultipleChoice.from_pretrained(tmp_path)
    BertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_labels": 0}, "num_labels must be an integer from 1"),
        ({"num_labels": "3"}, "num_labels must be an integer"),
        ({"num_labels": 2, "id2label": ["a"]}, "num_labels is 2, but id2label has 1 names"),
        ({"id2label": "ab"}, "id2label must be a list of names"),
        ({"id2label": {1: "a"}}, "id2label must name the labels 0 to 0"),
        ({"id2label": ["a", "a"]}, "id2label: the names of labels must differ"),
        ({"slot_labels": [3]}, "slot_labels: a label's name must be one line of text, not 3"),
        ({"problem_type": "ranking"}, "problem_type must be .* not 'ranking'"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "needs at least 2 labels"),
        ({"max_position_embeddings": 5}, "max_position_embeddings must be from 6, what .* has, to 36, not 5"),
        ({"max_position_embeddings": 37}, "max_position_embeddings must be from 6, what .* has, to 36, not 37"),
        ({"max_position_embeddings": 7.0}, "max_position_embeddings must be an integer"),
    ],
)
def test_options_that_are_refused(tmp_path, options, words):
    save(BertForSequenceClassification, tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        BertForSequenceClassification.from_pretrained(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_made_of_a_folder(tmp_path):
    save(BertModel, tmp_path, dataclasses.replace(CONFIG, slot_labels=()))
    with pytest.raises(ValueError, match=f"{tmp_path}: BertForQuestionAnswering has 2 labels, start and end, not 3"):
        BertForQuestionAnswering.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: BertForJointIntentAndSlots needs .* slot_labels"):
        BertForJointIntentAndSlots.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no qa_outputs"):
        BertForQuestionAnswering.from_pretrained(tmp_path, num_labels=2)


# --- more positions ----------------------------------------------------------------------------------------------


def test_positions_are_extended_and_written_out(tmp_path):
    params = save(BertForMaskedLM, tmp_path)
    model, loaded = loads_alone(BertForMaskedLM, tmp_path, max_position_embeddings=36)
    assert model.config == dataclasses.replace(CONFIG, max_position_embeddings=36)
    table = loaded["bert"]["embeddings"]["position"]["embedding"]
    old = params["bert"]["embeddings"]["position"]["embedding"]
    np.testing.assert_array_equal(table[:6], old)
    np.testing.assert_allclose(table, hierarchical_positions(old), atol=1e-6)
    rest = dict(loaded["bert"]["embeddings"], position=params["bert"]["embeddings"]["position"])
    same(dict(loaded, bert=dict(loaded["bert"], embeddings=rest)), params)
    model.save_pretrained(tmp_path, loaded)
    again, written = loads_alone(BertForMaskedLM, tmp_path)
    same(written, loaded)
    assert again == model
    logits = jax.jit(model.apply)({"params": loaded}, np.full((1, 30), 7)).logits
    assert np.isfinite(logits).all()
    same(loads_alone(BertForMaskedLM, tmp_path, max_position_embeddings=36)[1], loaded)


# --- folders whose parts do not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 21}, r"word_embeddings.weight is \(20, 8\), not \(21, 8\)"),
        ({"hidden_size": 10}, r"word_embeddings.weight is \(20, 8\), not \(20, 10\)"),
        ({"intermediate_size": 13}, r"intermediate.dense.weight is \(12, 8\), not \(13, 8\)"),
        ({"type_vocab_size": 1}, r"token_type_embeddings.weight is \(2, 8\), not \(1, 8\)"),
        ({"max_position_embeddings": 7}, r"position_embeddings.weight is \(6, 8\), not \(7, 8\)"),
        ({"tie_word_embeddings": False}, "lacks 1 tensors: cls.predictions.decoder.weight"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2, but model.safetensors has 1 layers"),
    ],
)
def test_a_configuration_of_another_model(tmp_path, changes, words):
    save(BertForPreTraining, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=words) as caught:
        BertForPreTraining.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_untied_decoder_is_refused_where_it_should_be_tied(tmp_path):
    save(BertForMaskedLM, tmp_path, dataclasses.replace(CONFIG, tie_word_embeddings=False))
    loads_alone(BertForMaskedLM, tmp_path)
    edit(tmp_path, tie_word_embeddings=None)
    with pytest.raises(
        ValueError, match=r"decoder.weight differs from .*unless config.json says tie_word_embeddings fal"
    ):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_the_bias_of_an_untied_decoder(tmp_path):
    """PyTorch adds the decoder's own, and older files have none."""
    untied = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    params = save(BertForMaskedLM, tmp_path, untied)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(tensors["cls.predictions.decoder.bias"], params["predictions"]["bias"])
    for change in ({"cls.predictions.bias": np.zeros(20, np.float32)}, {"cls.predictions.decoder.bias": None}):
        edited = {n: t for n, t in (tensors | change).items() if t is not None}
        safetensors.numpy.save_file(edited, tmp_path / "model.safetensors")
        same(loads_alone(BertForMaskedLM, tmp_path)[1], params)
