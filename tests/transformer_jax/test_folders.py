"""Folders of junk, configurations and weights, are refused by path and name, and none is written."""

import json
import time

import flax.traverse_util
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from transformer_jax import Transformer


@pytest.fixture
def folder(tiny, tmp_path):
    model, params = tiny
    model.save_pretrained(tmp_path, params)
    return tmp_path


def refuse(folder, message):
    """from_pretrained says no in one line that names the folder, soon."""
    begin = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        Transformer.from_pretrained(folder)
    assert time.monotonic() - begin < 10
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 10**15}, "vocab_size must be an integer from 1 to"),
        ({"vocab_size": 2**31 - 1}, r"embedding.embedding is \(11, 8\), not \(2147483647, 8\)"),
        ({"vocab_size": 1e3}, "vocab_size must be an integer .* not 1000.0"),
        ({"vocab_size": None}, "vocab_size must be an integer"),
        ({"vocab_size": True}, "vocab_size must be an integer .* not True"),
        ({"vocab_size": [11]}, r"vocab_size must be an integer .* not \[11\]"),
        ({"features": "8"}, "features must be an integer"),
        ({"features": 2**31 - 2}, "features must be an integer from 1 to 1048576"),
        ({"features": 2**20, "mlp_dim": 2**20, "num_heads": 1}, "does not fit its config.json"),
        ({"encoder_layers": 3000}, r"config.json in 35988 parameters: encoder.layer_1.* is missing"),
        ({"encoder_layers": 10**6}, "encoder_layers must be an integer from 1 to 10000"),
        ({"encoder_layers": 0}, "encoder_layers must be"),
        ({"max_length": 10**12}, "max_length must be an integer from 1 to"),
        ({"positions": "learned", "max_length": 2**20}, "positions.embedding is missing"),
        ({"head_dim": 0}, "head_dim must be an integer from 1 to 1048576 or None, not 0"),
        ({"activation": ["relu"]}, "activation must be"),
        ({"activation": {"a": 1}}, "activation must be"),
        ({"norm": 1}, "norm must be"),
        ({"positions": None}, "positions must be"),
        ({"remat": [[]]}, "remat must be"),
        ({"dropout_rate": 1}, "dropout_rate must be a number from 0 below 1"),
        ({"dropout_rate": "0"}, "dropout_rate must be a number"),
        ({"attention_bias": 1}, "attention_bias must be True or False, not 1"),
        ({"scan_layers": "no"}, "scan_layers must be True or False"),
        ({"embeddings": "normalized"}, "embeddings must be 'scaled', 'plain' or 'normalised', not 'normalized'"),
        ({"encoder_start_id": 11}, "encoder_start_id must lie between 0 and 10 .vocab_size is 11."),
        ({"pad_id": 11}, "pad_id must lie between 0 and 10 .vocab_size is 11."),
        ({"eos_id": -1}, "eos_id must be an integer from 0"),
        ({"decoder_start_id": 99}, "decoder_start_id must lie between 0 and 10"),
        ({"eos_id": 0}, "pad_id and eos_id must differ"),
        ({"num_heads": 3}, "3 heads do not divide the width 8"),
        ({"features": 7, "num_heads": 1}, "sinusoidal positions need an even width, not features 7"),
        ({"model_type": ["transformer_jax"]}, "model_type"),
        ({"colour" * 1000: 1}, "unknown field 'colour"),
    ],
)
def test_a_config_of_junk_is_refused_by_path_and_field(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    refuse(folder, message)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"dropout_rate": 0.0', '"dropout_rate": NaN', "is not JSON: NaN is no number of JSON"),
        ('"dropout_rate": 0.0', '"dropout_rate": -Infinity', "-Infinity is no number"),
        ('"dropout_rate": 0.0', '"dropout_rate": 1e999', "dropout_rate must be a number .* not inf"),
        ('"vocab_size": 11', '"vocab_size": 1' + "0" * 6000, "an integer of 6001 digits"),
        ('"vocab_size": 11', '"vocab_size": 11, "vocab_size": 12', "the key 'vocab_size' is there more than once"),
        ('"vocab_size": 11', '"vocab_size": ' + "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('"vocab_size": 11', '"vocab_size": ' + '{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('"vocab_size": 11,', "", "vocab_size must be an integer"),
        ('"vocab_size"', "vocab_size", "is not JSON"),
    ],
)
def test_a_config_that_is_not_strictly_json_is_refused(folder, before, after, message):
    path = folder / "config.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    refuse(folder, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\x00\xff\xfe", "is not JSON"),
        ("{}".encode("utf-16"), "is not JSON"),
        (b"null", "holds NoneType, not a JSON object"),
        (b"[1]", "holds list"),
        (b"7", "holds int"),
        (b"{}", "model_type None"),
    ],
)
def test_a_config_of_other_bytes_is_refused(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refuse(folder, message)


NAME = "embedding.embedding"


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("int32", 3, r"weights must be floating-point numbers, but embedding.embedding \(int32\) are not"),
        ("bool", True, r"embedding.embedding \(bool\) are not"),
        ("float32", np.nan, "not finite .nan or infinity. in 1 tensors: embedding.embedding"),
        ("float16", np.inf, "not finite"),
        ("float64", 1e300, "weights must fit float32: not finite .* embedding.embedding"),
    ],
)
def test_weights_that_are_no_weights_are_refused_by_name(folder, kind, value, message):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors[NAME] = np.full(tensors[NAME].shape, value, kind)
    safetensors.numpy.save_file(tensors, path)
    refuse(folder, message)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_of_any_floating_type_are_read(folder, kind):
    path = folder / "model.safetensors"
    tensors = {name: tensor.astype(kind) for name, tensor in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(tensors, path)
    _, params = Transformer.from_pretrained(folder)
    for name, leaf in flax.traverse_util.flatten_dict(params, sep=".").items():
        np.testing.assert_array_equal(leaf, tensors[name].astype(np.float32))


def change(params, leaf):
    return {**params, "embedding": {"embedding": leaf(params["embedding"]["embedding"])}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: change(p, lambda x: x.at[3, 1].set(jnp.nan)), "not finite .* embedding.embedding"),
        (lambda p: change(p, lambda x: x * jnp.inf), "not finite"),
        (lambda p: change(p, lambda x: np.full(x.shape, 1e300)), "not finite"),
        (lambda p: change(p, lambda x: x.astype(int)), r"embedding.embedding \(int32\) are not"),
        (lambda p: change(p, lambda x: x > 0), r"embedding.embedding \(bool\) are not"),
        (lambda p: change(p, lambda x: x[:-1]), r"embedding.embedding is \(10, 8\), not \(11, 8\)"),
        (lambda p: {**p, "spare": jnp.ones(2)}, r"spare is \(2,\), not known"),
        (lambda p: {"params": p}, "not the model's"),
        (lambda p: {k: v for k, v in p.items() if k != "decoder"}, "decoder.layer_0.* is missing"),
        (lambda p: {}, "in 37 parameters: .* is missing"),
        (lambda p: list(p), "parameters are a dict of arrays, not list"),
    ],
)
def test_what_from_pretrained_would_refuse_is_not_saved(tiny, tmp_path, spoil, message):
    model, params = tiny
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "new", spoil(params))
    assert not (tmp_path / "new").exists()
