"""Sizes, and what a config.json may and may not say."""

import json
import math

import pytest

from bert_jax import BertConfig, BertForPreTraining, BertModel


def count(model):
    return sum(math.prod(shape) for shape in model.parameter_shapes().values())


@pytest.mark.parametrize(
    ("preset", "vocab_size", "parameters"),
    [
        ("tiny", 30522, 4_385_920),
        ("mini", 30522, 11_170_560),
        ("small", 30522, 28_763_648),
        ("medium", 30522, 41_373_184),
        ("base", 30522, 109_482_240),
        ("base", 28996, 108_310_272),
        ("base", 119547, 177_853_440),
        ("base", 21128, 102_267_648),
        ("large", 30522, 335_141_888),
        ("large", 28996, 333_579_264),
    ],
)
def test_published_sizes(preset, vocab_size, parameters):
    assert count(BertModel(getattr(BertConfig, preset)(vocab_size=vocab_size))) == parameters


@pytest.mark.parametrize(("preset", "parameters"), [("base", 110_106_428), ("large", 336_226_108)])
def test_published_sizes_with_heads(preset, parameters):
    assert count(BertForPreTraining(BertConfig.preset(preset))) == parameters


def test_json_round_trip():
    config = BertConfig.mini(vocab_size=77, hidden_act="relu", pad_token_id=3, layer_norm_eps=1e-6)
    assert BertConfig.from_json(config.to_json()) == config
    assert "scan_layers" not in config.to_json()


def test_json_ignores_what_does_not_matter():
    fields = BertConfig.tiny().to_json() | {"use_cache": True, "architectures": ["X"], "pad_token_id": None}
    assert BertConfig.from_json(fields, scan_layers=True) == BertConfig.tiny(scan_layers=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "roberta"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("hidden_act", "mish"),
        ("vocab_size", 0),
        ("hidden_size", "768"),
        ("hidden_dropout_prob", 1.0),
        ("attention_probs_dropout_prob", None),
    ],
)
def test_json_refuses_by_key_and_value(key, value):
    with pytest.raises(ValueError) as caught:
        BertConfig.from_json({**BertConfig.tiny().to_json(), key: value})
    assert key in str(caught.value) and repr(value) in str(caught.value)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_attention_heads 7 does not divide hidden_size 128"):
        BertConfig.tiny(num_attention_heads=7)


def test_unknown_preset_and_remat():
    with pytest.raises(ValueError, match=r"'huge'.*'large'"):
        BertConfig.preset("huge")
    with pytest.raises(ValueError, match="'some'"):
        BertConfig.tiny(remat="some")


# --- labels ------------------------------------------------------------------------------------------------------

TINY = BertConfig.tiny()
NAMES = ("O", "B-PER", "I-PER")


def read(**fields):
    return BertConfig.from_json(TINY.to_json() | fields)


def test_labels_are_written_as_hugging_face_does():
    config = BertConfig.tiny(id2label=NAMES, problem_type="multi_label_classification", classifier_dropout=0.25)
    fields = config.to_json()
    assert fields["id2label"] == {"0": "O", "1": "B-PER", "2": "I-PER"}
    assert fields["label2id"] == {"O": 0, "B-PER": 1, "I-PER": 2}
    assert (fields["problem_type"], fields["classifier_dropout"]) == ("multi_label_classification", 0.25)
    assert BertConfig.from_json(json.loads(json.dumps(fields))) == config and config.num_labels == 3
    joint = BertConfig.tiny(slot_labels=NAMES, tie_word_embeddings=False)
    assert joint.to_json()["slot_labels"] == [*NAMES] and joint.to_json()["tie_word_embeddings"] is False
    assert BertConfig.from_json(json.loads(json.dumps(joint.to_json()))) == joint
    assert hash(joint) != hash(config)


def test_defaults_stay_out_of_the_file():
    new = {"id2label", "label2id", "slot_labels", "problem_type", "classifier_dropout", "tie_word_embeddings"}
    assert not new & TINY.to_json().keys() and TINY.num_labels == 2
    nulls = dict.fromkeys(("id2label", "label2id", "slot_labels", "problem_type", "classifier_dropout", "num_labels"))
    assert read(**nulls) == TINY


def test_labels_are_read_from_whatever_says_them():
    table = {"O": 0, "B-PER": 1, "I-PER": 2}
    for fields in (
        {"id2label": {"2": "I-PER", "0": "O", "1": "B-PER"}},
        {"label2id": table},
        {"label2id": dict(zip(table, "012", strict=True))},
        {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": table, "num_labels": 3},
    ):
        assert read(**fields).id2label == NAMES
    assert read(num_labels=3).id2label == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, r"id2label must name the labels 0 to 1, not \['0', '2'\]"),
        ({"id2label": {"0": "a", "x": "b"}}, "id2label: a label's id must be an integer, not 'x'"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label: the names of labels must differ, .*: a$"),
        ({"id2label": {"0": "a", "1": 3}}, "id2label: a label's name must be one line of text, not 3"),
        ({"id2label": {"0": "a", "1": "b\nc"}}, "id2label: a label's name must be one line of text"),
        ({"id2label": {"0": "a", "1": "\ud800"}}, "id2label: a label's name must be one line of text"),
        ({"id2label": {}}, "id2label must name at least one label"),
        ({"id2label": "ab"}, "id2label must be an object of ids and names, not 'ab'"),
        ({"label2id": ["a"]}, r"label2id must be an object of names and ids, not \['a'\]"),
        ({"label2id": {"a": 0, "b": 0}}, r"label2id: the ids of labels must differ, not \[0, 0\]"),
        ({"label2id": {"a": 0, "b": 2}}, "label2id must name the labels 0 to 1"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}, "id2label .* and label2id .* do not agree"),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels 3 and the 2 names .* do not agree"),
        ({"num_labels": 0}, "num_labels must be an integer from 1"),
        ({"num_labels": "3"}, "num_labels must be an integer from 1"),
        ({"slot_labels": [["O"]]}, "slot_labels: a label's name must be one line of text"),
        ({"slot_labels": 3}, "slot_labels must be a list of names"),
        ({"problem_type": "ranking"}, "problem_type must be .*'regression' or None, not 'ranking'"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "needs at least 2 labels"),
        ({"classifier_dropout": 1.0}, "classifier_dropout must be a number from 0 below 1 or None"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings must be True or False, not None"),
    ],
)
def test_labels_that_contradict_themselves(fields, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(**fields)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_labels_of_a_configuration_are_a_tuple():
    with pytest.raises(ValueError, match=r"id2label must be a tuple, each a string, not \['a', 'b'\]"):
        BertConfig(id2label=["a", "b"])
