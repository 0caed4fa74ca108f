"""A Marian's folder of any content: loaded as it says, or refused in one line that names it; nothing else."""

import json
import shutil

import flax.traverse_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import (
    damaged,
    fuzz,
    json_text,
    outcome,
    safetensors_files,
    shapes_once_of,
    stored_tensors,
    strict_json,
)
from tests.transformer_jax.make_golden_marian import ODD, TEXTS
from tests.transformer_jax.marian_folders import odd_folder, tokenizer_folder
from transformer_jax import Transformer
from transformer_jax.decoding_defaults import DecodingDefaults, read_decoding_defaults
from transformer_jax.marian import DEFAULTS, FIELDS, names_of
from transformer_jax.tokenizer import load_tokenizer

SWISH, RELU, GELU, UNTIED = ODD


class Unprinted(dict):
    """Hypothesis prints what it draws from, which is long."""

    def __repr__(self):
        return "tensors"


shapes_once = shapes_once_of(Transformer)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a model and one of a tokenizer for each golden one."""
    top = tmp_path_factory.mktemp("saved")
    for odd in ODD:
        odd_folder(odd, top / odd)
    for case in ("one", "two"):
        tokenizer_folder(case, top / case)
    return top


def load(read, saved, tmp_path, which, name, content):
    folder = tmp_path / which
    if not folder.exists():
        shutil.copytree(saved / which, folder)
    (folder / name).write_bytes(content)
    return outcome(lambda: read(folder), folder)


@fuzz
@given(data=st.data())
def test_config(saved, tmp_path, data):
    odd = data.draw(st.sampled_from([SWISH, GELU]))
    content = data.draw(damaged(json_text(json.loads((saved / odd / "config.json").read_text()))))
    loaded = load(Transformer.from_pretrained, saved, tmp_path, odd, "config.json", content)
    if loaded is None:
        return
    said, config = strict_json(content), loaded[0].config
    for ours, (theirs, default) in FIELDS.items():
        found = getattr(config, DEFAULTS[ours] if getattr(config, ours) is None else ours)
        assert found == (
            said.get(theirs, default) or config.vocab_size if "vocab" in ours else said.get(theirs, default)
        )
    assert (config.embeddings == "scaled") is said.get("scale_embedding", False)


@fuzz
@given(data=st.data())
def test_weights(saved, tmp_path, data):
    odd = data.draw(st.sampled_from([SWISH, GELU, UNTIED]))
    tensors = Unprinted(stored_tensors((saved / odd / "model.safetensors").read_bytes()))
    content = data.draw(safetensors_files(tensors))
    loaded = load(Transformer.from_pretrained, saved, tmp_path, odd, "model.safetensors", content)
    if loaded is None:
        return
    model, params = loaded
    given = {name.removeprefix("model."): tensor for name, tensor in stored_tensors(content).items()}
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    for path, names in names_of(model.config, flat).items():
        # Each name's numbers, however they are arranged; a table may be there under a copy's name.
        there = [given[name.removeprefix("model.")] for name in names if name.removeprefix("model.") in given]
        if len(there) == len(names):
            numbers = np.concatenate([np.ravel(tensor) for tensor in there]).astype(np.float32)
            np.testing.assert_array_equal(np.sort(numbers), np.sort(np.ravel(flat[path])))
        else:
            assert path == "embedding/embedding"


@fuzz
@given(data=st.data())
def test_generation(saved, tmp_path, data):
    said = DecodingDefaults(bad_words_ids=((3,),), forced_eos_token_id=4, num_beams=2, max_length=7)._asdict()
    content = data.draw(damaged(json_text(said)))
    defaults = load(read_decoding_defaults, saved, tmp_path, SWISH, "generation_config.json", content)
    if defaults is not None:
        fields = strict_json(content)
        for name, value in defaults._asdict().items():
            default = DecodingDefaults._field_defaults[name]
            said = default if fields.get(name) is None else fields[name]
            assert value == (tuple(map(tuple, said)) if name == "bad_words_ids" else said)


@fuzz
@given(data=st.data())
def test_tokenizer(saved, tmp_path, data):
    case = data.draw(st.sampled_from(["one", "two"]))
    names = ["vocab.json", "tokenizer_config.json", *(["target_vocab.json"] if case == "two" else [])]
    name = data.draw(st.sampled_from(names))
    content = data.draw(damaged(json_text(json.loads((saved / case / name).read_text()))))
    tokenizer = load(load_tokenizer, saved, tmp_path, case, name, content)
    if tokenizer is None:
        return
    for text in TEXTS[:9]:
        assert all(id_ in tokenizer.vocab.values() for id_ in tokenizer.encode(text))
        assert isinstance(tokenizer.decode(tokenizer.encode_target(text)), str)
    if name == "vocab.json":
        assert tokenizer.vocab == strict_json(content)
