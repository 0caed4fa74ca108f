"""A BERT's folder of any content: loaded as it says, or refused in one line that names it; never anything else."""

import copy
import dataclasses
import json
import re
import shutil
import unicodedata

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bert_jax import BertConfig, BertModel, BertTokenizer
from bert_jax.checkpoints import PretrainedModel
from bert_jax.names import to_hugging_face
from bert_jax.vocabulary import SPECIAL_TOKENS
from tests.fuzzing import (
    broken,
    check_line,
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

CONFIG = BertConfig(
    vocab_size=11,
    hidden_size=4,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=6,
    max_position_embeddings=8,
    id2label=("no", "yes", "perhaps"),
    slot_labels=("O", "B-x"),
    problem_type="multi_label_classification",
    classifier_dropout=0.5,
)


shapes_once = shapes_once_of(PretrainedModel)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, parameters by path, tensors of the file)"""
    folder = tmp_path_factory.mktemp("saved")
    model = BertModel(CONFIG)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    model.save_pretrained(folder, params)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return folder, flat, stored_tensors((folder / "model.safetensors").read_bytes())


def load(saved, tmp_path, name, content):
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(saved[0], folder)
    (folder / name).write_bytes(content)
    return outcome(lambda: BertModel.from_pretrained(folder), folder)


def labels(said, name):
    """The names in a config.json, in the order of their ids."""
    if name == "slot_labels":
        return tuple(said.get(name) or ())
    if said.get("id2label") is None and said.get("label2id") is None:
        return BertConfig().id2label
    table = {int(index): label for label, index in (said.get("label2id") or {}).items()}
    table |= {int(index): label for index, label in (said.get("id2label") or {}).items()}
    return tuple(table[index] for index in range(len(table)))


@fuzz
@given(data=st.data())
def test_config(saved, tmp_path, data):
    fields = json.loads((saved[0] / "config.json").read_text())
    content = data.draw(damaged(json_text(fields)))
    loaded = load(saved, tmp_path, "config.json", content)
    if loaded is None:
        assert content != (saved[0] / "config.json").read_bytes()
        return
    model, params = loaded
    said = strict_json(content)
    assert said.get("model_type", "bert") == "bert" and not said.get("is_decoder", False)
    for name, value in dataclasses.asdict(model.config).items():
        if name in ("id2label", "slot_labels"):
            assert value == labels(said, name)
            continue
        wanted = said.get(name, getattr(BertConfig(), name))
        if name in ("scan_layers", "remat") or (name == "pad_token_id" and wanted is None):
            wanted = getattr(BertConfig(), name)
        assert (type(value), value) == (type(wanted), wanted), name
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    assert flat.keys() == saved[1].keys()
    for path, leaf in flat.items():  # other heads are another shape of the same numbers
        np.testing.assert_array_equal(np.ravel(leaf), np.ravel(saved[1][path]))


@fuzz
@given(data=st.data())
def test_weights(saved, tmp_path, data):
    content = data.draw(safetensors_files(saved[2]))
    loaded = load(saved, tmp_path, "model.safetensors", content)
    if loaded is None:
        return
    model, params = loaded
    given = {
        name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight"): tensor
        for name, tensor in stored_tensors(content).items()
    }
    for name, tensor in to_hugging_face(params, model.parameter_shapes()).items():
        if name in given or not name.startswith("pooler."):  # a head that is not there is initialised, with a warning
            assert given[name].dtype.name.startswith(("float", "bfloat"))
            assert given.pop(name).astype(np.float32).tobytes() == tensor.tobytes(), name
    unused = ("cls.", "classifier.", "qa_outputs.", "embeddings.position_ids")
    assert all(name.startswith(unused) for name in given), sorted(given)


@pytest.mark.parametrize("names", [["\n"], ["\x1b[31m"], ["x" * 3000], ["\n", "bert.\n"]])
def test_names_of_tensors_that_no_line_can_hold(saved, tmp_path, names):
    tensors = {**saved[2], **dict.fromkeys(names, np.zeros(1, np.float32))}
    assert load(saved, tmp_path, "model.safetensors", safetensors.numpy.save(tensors)) is None


def test_a_kind_of_numbers_that_no_line_can_hold(saved, tmp_path):
    content = with_header(saved[2], lambda header: header.replace('"F32"', '"\\n"'))
    assert load(saved, tmp_path, "model.safetensors", content) is None


def test_an_integer_where_any_number_may_be(saved, tmp_path):
    fields = json.loads((saved[0] / "config.json").read_text()) | {"layer_norm_eps": 2**31}
    model, _ = load(saved, tmp_path, "config.json", json.dumps(fields).encode())
    assert model.config.layer_norm_eps == 2**31


# --- other files of weights --------------------------------------------------------------------------------------


def check_params(loaded, saved):
    """Whatever is read has the names of what was saved, and finite numbers."""
    if loaded is not None:
        flat = flax.traverse_util.flatten_dict(loaded[1], sep="/")
        assert flat.keys() == saved[1].keys()
        assert all(np.isfinite(leaf).all() for leaf in flat.values())


@fuzz
@given(data=st.data())
def test_index_of_split_files(saved, tmp_path, data):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved[0], folder)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {name: files[i % 2] for i, name in enumerate(sorted(saved[2]))}
    for file in files:
        part = {name: tensor for name, tensor in saved[2].items() if where[name] == file}
        safetensors.numpy.save_file(part, folder / file)
    (folder / "model.safetensors").unlink()
    content = data.draw(damaged(json_text({"metadata": {"total_size": 1}, "weight_map": where})))
    loaded = load(saved, tmp_path, "model.safetensors.index.json", content)
    assert loaded is None or strict_json(content)["weight_map"] == where
    check_params(loaded, saved)


def msgpack_tree(tensors):
    """Every kind of thing that msgpack can hold in the place of tensors."""
    tree = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        *path, last = ["scale" if p == "weight" and "LayerNorm" in parts else p for p in parts]
        last = last if last != "weight" else "embedding" if "_embeddings" in name else "kernel"
        tree[(*path, last)] = np.ascontiguousarray(tensor.T) if last == "kernel" else tensor
    return tree


CHUNKED = "__msgpack_chunked_array__"
OTHER_LEAVES = st.sampled_from([
    None, True, 3, 1.5, 1j, "x", b"x", [], [1.0], {}, {"a": 1}, np.float32(2), np.ones(()), np.ones(4, bool),
    np.ones(4, np.int8), np.full(4, np.inf), np.array(["a"]), np.array(["2020"], "M8[Y]"), np.ones(4, complex),
    {CHUNKED: True}, {CHUNKED: True, "shape": {"0": 4}, "chunks": {"0": 1}},
])  # fmt: skip


@fuzz
@given(data=st.data())
def test_msgpack(saved, tmp_path, data):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved[0], folder)
    (folder / "model.safetensors").unlink()
    flat = msgpack_tree(saved[2])
    edited = data.draw(st.booleans())
    for _ in range(2 * edited):
        path = data.draw(st.sampled_from(sorted(flat)))
        flat[data.draw(st.sampled_from([path, (*path, "x"), (*path[:-1], "weight")]))] = data.draw(OTHER_LEAVES)
    tree = {}
    for path, leaf in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node.get(part, {}), dict) else {}
        node[path[-1]] = copy.deepcopy(leaf)
    content = flax.serialization.msgpack_serialize(tree)
    content = content if edited else data.draw(damaged(broken(content)) | st.binary(max_size=99))
    check_params(load(saved, tmp_path, "flax_model.msgpack", content), saved)


# --- tokenizers --------------------------------------------------------------------------------------------------

TEXTS = ["The quick brown fox, the lazy dog!", "Überall 12 kleine Füchse", "日本 [MASK] x\ty", "a" * 200, ""]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer.train([*TEXTS, "quick quicker quickest slow slower slowest"], 80)


def read_tokenizer(tmp_path, files):
    folder = tmp_path / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return outcome(lambda: BertTokenizer.from_pretrained(folder), folder)


def check_tokenizer(loaded, backend):
    """It is what the library makes of the same vocabulary, and can be used."""
    backend.no_truncation()
    backend.no_padding()
    assert loaded.backend.get_vocab() == backend.get_vocab()
    assert 0 < loaded.vocab_size == max(backend.get_vocab().values()) + 1
    batch = loaded(TEXTS)
    for text, ids, mask in zip(TEXTS, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask == 1].tolist() == backend.encode(text).ids
    assert batch["input_ids"].max() < loaded.vocab_size


@fuzz
@given(data=st.data())
def test_tokenizer_json(tokenizer, tmp_path, data):
    tree = json.loads(tokenizer.backend.to_str())
    vocabulary = tree["model"].pop("vocab")
    small = {token: vocabulary[token] for token in list(vocabulary)[:12]}  # else nearly all edits are within the words
    tree["model"]["vocab"] = small if data.draw(st.booleans()) else vocabulary
    content = data.draw(damaged(json_text(tree)))
    if data.draw(st.integers(0, 9)) == 0:
        content = data.draw(broken(tokenizer.backend.to_str().encode()))
    loaded = read_tokenizer(tmp_path, {"tokenizer.json": content})
    if loaded is not None:
        check_tokenizer(loaded, Tokenizer.from_str(content.decode()))


def no_special_tokens(tree):
    tree["post_processor"]["special_tokens"] = {}


def text_twice(tree):
    tree["post_processor"]["single"].append({"Sequence": {"id": "A", "type_id": 0}})


def another_type(tree):
    tree["post_processor"]["single"][1]["Sequence"]["type_id"] = 1


def unknown_only_added(tree):
    del tree["model"]["vocab"]["[UNK]"]


def a_word_that_no_line_can_hold(tree):
    tree["truncation"] = ["\n"]


@pytest.mark.parametrize(
    "edit", [no_special_tokens, text_twice, another_type, unknown_only_added, a_word_that_no_line_can_hold]
)
def test_a_tokenizer_json_that_is_no_berts(tokenizer, tmp_path, edit):
    tree = json.loads(tokenizer.backend.to_str())
    edit(tree)
    assert read_tokenizer(tmp_path, {"tokenizer.json": json.dumps(tree).encode()}) is None


@fuzz
@given(data=st.data())
def test_vocabulary(tokenizer, tmp_path, data):
    vocabulary = tokenizer.backend.get_vocab()
    lines = sorted(vocabulary, key=vocabulary.get)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at : at + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from([["[UNK]"], [""], [" "], ["x\0"], ["﻿"], ["a b"], ["\u2028"], ["##"], ["y", "y"], []])
        )
    content = data.draw(damaged(st.just(data.draw(st.sampled_from(["\n", "\n", "\r\n", " \n", "\r"])).join(lines))))
    settings = {"do_lower_case": data.draw(st.booleans()), "strip_accents": None, "tokenize_chinese_chars": True}
    files = {"vocab.txt": data.draw(broken(content)) if content else content}
    if data.draw(st.booleans()):
        files["tokenizer_config.json"] = data.draw(damaged(json_text(settings)))
    loaded = read_tokenizer(tmp_path, files)
    if loaded is None:
        return
    tokens = files["vocab.txt"].decode("utf-8-sig").rstrip(" \t\r\n").split("\n")
    assert loaded.backend.get_vocab() == {token.strip(" \t\r"): index for index, token in enumerate(tokens)}
    said = json.loads(files["tokenizer_config.json"].decode("utf-8-sig")) if len(files) > 1 else {}
    cased = any(token != token.lower() for token in loaded.backend.get_vocab() if not re.fullmatch(r"\[.*\]", token))
    rules, lowercase = loaded.backend.normalizer, said.get("do_lower_case")
    assert rules.lowercase is (not cased if lowercase is None else lowercase)
    assert rules.strip_accents is said.get("strip_accents")
    assert rules.handle_chinese_chars is said.get("tokenize_chinese_chars", True)
    check_tokenizer(loaded, Tokenizer.from_str(loaded.backend.to_str()))


# --- words and windows -------------------------------------------------------------------------------------------

LETTERS = "aAéÜ日x1 \t\u200b\x00\u0301.,-#İß😀"
WRITTEN = st.text(LETTERS, max_size=30) | st.sampled_from([*TEXTS, "[MASK]", "[SEP] x", "\ud800", "quicker " * 40])
ANYTHING = st.one_of(WRITTEN, st.none(), st.integers(-3, 30), st.floats(), st.binary(max_size=3), st.lists(WRITTEN))
LENGTHS = st.integers(-2, 40) | st.sampled_from([None, True, 2**40, 3.0, "8"])


def encoded(make):
    """What `make` returns, or None where it refuses in one line."""
    try:
        return make()
    except ValueError as error:
        assert type(error) is ValueError
        check_line(str(error), "")
        return None


def check_pieces(tokenizer, text, tokens, offsets):
    """Each token is what is left of the text at its place: letters without case and accents."""
    for token, (start, end) in zip(tokens, offsets, strict=True):
        assert 0 <= start < end <= len(text)
        if token not in SPECIAL_TOKENS:
            plain = tokenizer.backend.normalizer.normalize_str(text[start:end])
            assert token.removeprefix("##") == plain.strip() or not unicodedata.is_normalized("NFD", text.lower())


@fuzz
@given(st.lists(st.lists(WRITTEN, max_size=5) | ANYTHING, max_size=3) | ANYTHING, LENGTHS)
def test_words(tokenizer, sentences, max_length):
    found = encoded(lambda: tokenizer.encode_words(sentences, max_length))
    if found is None:
        return
    for words, encoding in zip(sentences, found, strict=True):
        assert max_length is None or len(encoding) <= max_length
        assert encoding.word_ids[0] is encoding.word_ids[-1] is None
        inside = encoding.word_ids[1:-1]
        assert inside == sorted(inside) and set(inside) <= set(range(len(words)))
        for number in set(inside):
            at = [i for i, word in enumerate(encoding.word_ids) if word == number]
            check_pieces(tokenizer, words[number], [encoding.tokens[i] for i in at], [encoding.offsets[i] for i in at])
        whole = [i for word in words for i in tokenizer.encode([word])[0].ids[1:-1]]
        assert encoding.ids[1:-1] == whole[: len(inside)]
        assert bool(encoding.overflowing) is (len(inside) < len(whole))


@fuzz
@given(ANYTHING, ANYTHING, LENGTHS, LENGTHS)
def test_windows(tokenizer, question, context, max_length, stride):
    windows = encoded(lambda: tokenizer.encode_windows(question, context, max_length, stride))
    if windows is None:
        return
    asked, told = tokenizer.encode([question])[0], tokenizer.encode([context])[0]
    reached = 0
    for number, window in enumerate(windows):
        assert len(window) <= max_length
        assert window.ids[: len(asked)] == asked.ids
        start = max(0, reached - stride) if number else 0
        reached = start + len(window) - len(asked) - 1
        assert window.ids[len(asked) :] == [*told.ids[1:-1][start:reached], tokenizer.sep_id]
        assert window.offsets[len(asked) : -1] == told.offsets[1:-1][start:reached]
        assert window.sequence_ids == [None, *[0] * (len(asked) - 2), None, *[1] * (reached - start), None]
        check_pieces(tokenizer, context, window.tokens[len(asked) : -1], window.offsets[len(asked) : -1])
    assert reached == len(told) - 2
