"""Sizes, and what a config.json may and may not say."""

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
