"""A Transformer's folder of any content: loaded as it says, or refused in one line that names it; nothing else."""

import dataclasses
import io
import json
import shutil

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from tests.fuzzing import (
    broken,
    damaged,
    fuzz,
    json_text,
    outcome,
    safetensors_files,
    shapes_once_of,
    stored_tensors,
    strict_json,
    with_header,
)
from transformer_jax import Transformer, TransformerConfig, Translator

WORDS = 25


shapes_once = shapes_once_of(Transformer)


@pytest.fixture(scope="module")
def spm():
    """The content of an spm.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox", "a lazy dog", "quick and lazy"] * 9),
        model_writer=model,
        vocab_size=WORDS,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="identity",  # else 230 KB of its table, and few bytes of anything else
        minloglevel=3,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def saved(make_transformer, spm, tmp_path_factory):
    """(folder, tensors of the file)"""
    folder = tmp_path_factory.mktemp("saved")
    model, params = make_transformer(WORDS, positions="learned", features=4)
    model.save_pretrained(folder, params)
    (folder / "spm.model").write_bytes(spm)
    tensors = stored_tensors((folder / "model.safetensors").read_bytes())
    flat = flax.traverse_util.flatten_dict(params, sep=".")
    assert flat.keys() == tensors.keys() and all(np.array_equal(flat[name], tensors[name]) for name in flat)
    return folder, tensors


def load(model, saved, tmp_path, name, content):
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(saved[0], folder)
    (folder / name).write_bytes(content)
    return outcome(lambda: model.from_pretrained(folder), folder)


@fuzz
@given(data=st.data())
def test_config(saved, tmp_path, data):
    fields = json.loads((saved[0] / "config.json").read_text())
    content = data.draw(damaged(json_text(fields)))
    loaded = load(Transformer, saved, tmp_path, "config.json", content)
    if loaded is None:
        assert content != (saved[0] / "config.json").read_bytes()
        return
    model, params = loaded
    said = {**dataclasses.asdict(TransformerConfig(WORDS)), **strict_json(content)}
    assert said.pop("model_type") == "transformer_jax"
    found = dataclasses.asdict(model.config)
    assert found == said and {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in said.items()
    }
    leaves = {name: np.ravel(tensor) for name, tensor in saved[1].items()}
    flat = flax.traverse_util.flatten_dict(params, sep=".")
    if model.config.scan_layers:  # one layer of each stack: stacking adds an axis
        flat = {name.replace("layers", "layer_0"): leaf for name, leaf in flat.items()}
    assert flat.keys() == leaves.keys()
    for name, leaf in flat.items():  # other heads are another shape of the same numbers
        np.testing.assert_array_equal(np.ravel(leaf), leaves[name])


@fuzz
@given(data=st.data())
def test_weights(saved, tmp_path, data):
    content = data.draw(safetensors_files(saved[1]))
    loaded = load(Transformer, saved, tmp_path, "model.safetensors", content)
    if loaded is None:
        return
    given = stored_tensors(content)
    flat = flax.traverse_util.flatten_dict(loaded[1], sep=".")
    assert flat.keys() == given.keys() == saved[1].keys()
    for name, leaf in flat.items():
        assert given[name].dtype.name.startswith(("float", "bfloat")) and leaf.shape == saved[1][name].shape
        assert given[name].astype(np.float32).tobytes() == jax.device_get(leaf).tobytes(), name


@fuzz
@given(data=st.data())
def test_sentencepiece(spm, saved, tmp_path, data):
    content = data.draw(broken(spm) | damaged(broken(spm)) | st.binary(max_size=50))
    translator = load(Translator, saved, tmp_path, "spm.model", content)
    if translator is None:
        assert content != spm
        return
    processor = translator.tokenizer
    assert processor.vocab_size() == WORDS
    pieces = sentencepiece_model_pb2.ModelProto.FromString(content).pieces
    assert [piece.piece for piece in pieces] == [processor.id_to_piece(i) for i in range(WORDS)]
    for text in ("the quick fox", "é\u3000日本", ""):
        assert all(0 <= token < WORDS for token in processor.encode(text))
        assert isinstance(processor.decode(processor.encode(text)), str)


@pytest.mark.parametrize("name", ["\n", "\x1b[31m", "x" * 3000])
def test_names_of_tensors_that_no_line_can_hold(saved, tmp_path, name):
    content = safetensors.numpy.save({**saved[1], name: np.zeros(1, np.float32)})
    assert load(Transformer, saved, tmp_path, "model.safetensors", content) is None


def test_a_kind_of_numbers_that_no_line_can_hold(saved, tmp_path):
    content = with_header(saved[1], lambda header: header.replace('"F32"', '"\\n"'))
    assert load(Transformer, saved, tmp_path, "model.safetensors", content) is None


def test_a_model_type_that_no_line_can_hold(saved, tmp_path):
    content = json.dumps({"model_type": "x" * 3000}).encode()
    assert load(Transformer, saved, tmp_path, "config.json", content) is None


def test_a_piece_that_is_no_text(spm, saved, tmp_path):
    at = spm.index("▁".encode())
    content = spm[:at] + b"\xbc" + spm[at + 1 :]
    assert load(Translator, saved, tmp_path, "spm.model", content) is None
