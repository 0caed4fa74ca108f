"""Model folders that are refused: damaged weights, configurations of no model, names of no folder."""

import json
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import BertConfig, BertModel
from transformer_jax.hub import local_folder

CONFIG = BertConfig.tiny(
    vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32
)
MODEL = BertModel(CONFIG)
NAME = "encoder.layer.1.output.dense.bias"


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def folder(params, tmp_path):
    MODEL.save_pretrained(tmp_path, params)
    return tmp_path


def replace(folder, name, tensor):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(tensors | {name: tensor}, folder / "model.safetensors")


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (np.ones(16, np.int32), rf"floating-point numbers, but {NAME} \(int32\)"),
        (np.ones(16, bool), rf"floating-point numbers, but {NAME} \(bool\)"),
        (np.full(16, np.nan, np.float32), rf"not finite .* {NAME}"),
        (np.full(16, -np.inf, np.float16), rf"not finite .* {NAME}"),
        (np.full(16, 1e300), rf"not finite .* {NAME}"),
        (np.full(16, np.nan, ml_dtypes.bfloat16), rf"not finite .* {NAME}"),
    ],
    ids=lambda value: getattr(value, "dtype", None),
)
def test_weights_are_refused_by_name(folder, tensor, words):
    replace(folder, NAME, tensor)
    with pytest.raises(ValueError, match=f"{folder}.*{words}"):
        BertModel.from_pretrained(folder)


def test_other_floating_weights_and_integer_constants_are_read(folder):
    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
        replace(folder, NAME, np.full(16, 0.5, dtype))
        replace(folder, "embeddings.position_ids", np.arange(32)[None])
        params = BertModel.from_pretrained(folder)[1]
        assert params["encoder"]["layer_1"]["mlp"]["down"]["bias"].tolist() == [0.5] * 16


def test_what_is_left_out_is_not_looked_at(folder):
    replace(folder, "cls.seq_relationship.bias", np.full(2, np.nan, np.float32))
    BertModel.from_pretrained(folder)


def test_broken_parameters_are_not_saved(folder, params):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for value in (np.nan, np.inf, 1e300):
        broken = params | {"pooler": params["pooler"] | {"bias": np.full(16, value)}}
        with pytest.raises(ValueError, match=r"not finite .* pooler/bias"):
            MODEL.save_pretrained(folder, broken)
        with pytest.raises(ValueError, match=r"not finite .* pooler/bias"):
            MODEL.save_pretrained(folder / "new", broken)
    with pytest.raises(ValueError, match=r"pooler/bias \(int64\)"):
        MODEL.save_pretrained(folder, params | {"pooler": params["pooler"] | {"bias": np.ones(16, np.int64)}})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_damaged_weights_give_a_model_or_an_error(folder_bytes, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    config, weights = folder_bytes
    content = bytearray(weights)
    end = len(content) if data.draw(st.booleans()) else 600  # the header is where it hurts
    at = data.draw(st.integers(0, end - 1))
    content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(content)
    try:
        loaded = BertModel.from_pretrained(folder)[1]
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded))


@pytest.fixture(scope="module")
def folder_bytes(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    MODEL.save_pretrained(folder, params)
    return (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()


# --- configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [*CONFIG.to_json()])
@pytest.mark.parametrize("value", ["[1]", "{}", "1e999", "NaN", '"\\ud800"', "null", "-1", "9" * 6000, '"x"', "1e15"])
def test_fields_are_refused_by_name(folder, field, value):
    if (field, value) == ("pad_token_id", "null"):
        return  # Hugging Face's way to say that there is none
    if (field, value) in (("initializer_range", "1e15"), ("layer_norm_eps", "1e15")):
        return  # strange, but numbers
    fields = {name: json.dumps(other) for name, other in CONFIG.to_json().items()} | {field: value}
    text = "{" + ", ".join(f"{json.dumps(name)}: {other}" for name, other in fields.items()) + "}"
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        BertModel.from_pretrained(folder)
    message = str(caught.value)
    assert f"{folder}/config.json" in message and len(message) < 400 and "\n" not in message
    # What is no JSON at all is found before there are fields.
    assert field in message or value in ("NaN", "9" * 6000)


def write(folder, **changes):
    (folder / "config.json").write_text(json.dumps(CONFIG.to_json() | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 10**15}, "vocab_size must be an integer from 1 to 2147483647, not 1000000000000000"),
        ({"num_hidden_layers": 3000}, "num_hidden_layers 3000, but model.safetensors has 2 layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer"),
        ({"vocab_size": 2**31 - 1}, r"word_embeddings.weight is \(40, 16\), not \(2147483647, 16\)"),
        ({"intermediate_size": 2**31 - 1}, "intermediate_size must be an integer from 1 to 1048576"),
        ({"intermediate_size": 2**20}, "does not fit its config.json: .* and 1 more"),
        ({"hidden_size": 2**20}, "does not fit its config.json: .* more"),
        ({"max_position_embeddings": 2**20}, r"position_embeddings.weight is \(32, 16\)"),
        ({"type_vocab_size": True}, "type_vocab_size must be an integer"),
        ({"layer_norm_eps": False}, "layer_norm_eps must be a number"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps must be a number"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob must be a number"),
        ({"hidden_act": ["gelu"]}, r"hidden_act must be .* not \['gelu'\]"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_configurations_that_fit_no_file_are_refused_at_once(folder, changes, words):
    write(folder, **changes)
    began = time.perf_counter()
    with pytest.raises(ValueError, match=f"{folder}.*{words}"):
        BertModel.from_pretrained(folder)
    assert time.perf_counter() - began < 10


def test_the_shapes_of_thousands_of_layers_take_no_time():
    began = time.perf_counter()
    shapes = BertModel(BertConfig.tiny(num_hidden_layers=3000)).parameter_shapes()
    assert len(shapes) == 5 + 3000 * 12 + 2 and time.perf_counter() - began < 10


def test_deep_and_damaged_configurations(folder):
    for text in ("[" * 100_000, '{"a": ' * 100_000, "{", "", "null", "[1]", '{"a": 1}x', "\ufeff{}", "{'a': 1}"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"{folder}/config.json .{{1,200}}$"):
            BertModel.from_pretrained(folder)


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "\ud800", "a\0b", "x" * 5000, "a/b/c", "/no/such/folder", "..x", 3, None, ["a"]])
def test_names_of_no_folder(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match="neither a folder nor a name of the Hugging Face hub|named by a str or Path"):
        local_folder(name, ["config.json"])


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="model.safetensors is no folder: name the one that holds config.json"):
        BertModel.from_pretrained(tmp_path / "model.safetensors")


def test_without_a_network_there_is_one_line_at_once(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"^nobody/nothing is not a folder, and the Hugging Face hub .+$") as caught:
        BertModel.from_pretrained("nobody/nothing")
    assert "\n" not in str(caught.value) and time.perf_counter() - began < 10
