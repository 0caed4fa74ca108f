"""The files that weights come in besides model.safetensors, and those that are never read."""

import dataclasses
import json
import os
import pickle

import flax.serialization
import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bert_jax import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from tests.bert_jax.folders import CONFIG, edit, loads_alone, same, save, taken

# --- several files -----------------------------------------------------------------------------------------------


def split(folder, files=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    """model.safetensors as two files and their index; returns the index's object."""
    tensors = taken(folder)
    where = {name: files[index % 2] for index, name in enumerate(sorted(tensors))}
    for file in set(files):
        safetensors.numpy.save_file({n: t for n, t in tensors.items() if where[n] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_split_files(tmp_path):
    params = save(BertForPreTraining, tmp_path)
    split(tmp_path)
    same(loads_alone(BertForPreTraining, tmp_path)[1], params)
    other = save(BertForPreTraining, tmp_path / "other", dataclasses.replace(CONFIG, hidden_act="relu"))
    jax.tree.map(np.testing.assert_array_equal, params, other)
    # One whole file goes before several.
    tensors = safetensors.numpy.load_file(tmp_path / "other" / "model.safetensors")
    safetensors.numpy.save_file({n: t + 1 for n, t in tensors.items()}, tmp_path / "model.safetensors")
    same(loads_alone(BertForPreTraining, tmp_path)[1], jax.tree.map(lambda x: x + 1, params))


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def renamed(to):
    def change(folder, index):
        index["weight_map"] = {name: to if file == A else file for name, file in index["weight_map"].items()}

    return change


def without_a_name(folder, index):
    index["weight_map"].pop("bert.pooler.dense.bias")


def with_a_name(folder, index):
    index["weight_map"]["bert.extra"] = A


def in_both(folder, index):
    whole = safetensors.numpy.load_file(folder / A) | safetensors.numpy.load_file(folder / B)
    for file in (A, B):
        safetensors.numpy.save_file(whole, folder / file)


def link(to):
    def change(folder, index):
        (folder / A).rename(folder.parent / "outside.safetensors")
        (folder / A).symlink_to(to(folder))

    return change


def gone(folder, index):
    (folder / A).unlink()


def cut(folder, index):
    (folder / A).write_bytes((folder / A).read_bytes()[:-7])


def other_map(value):
    def change(folder, index):
        index["weight_map"] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed("../outside.safetensors"), "names '../outside.safetensors', which is no file of this folder"),
        (renamed("/etc/passwd"), "names '/etc/passwd', which is no file of this folder"),
        (renamed("sub/model.safetensors"), "names 'sub/model.safetensors', which is no file"),
        (renamed("a\\b.safetensors"), "which is no file of this folder"),
        (renamed(".."), "names '..', which is no file of this folder"),
        (renamed("pytorch_model.bin"), "names 'pytorch_model.bin', which is no file of this folder"),
        (renamed(""), "names '', which is no file of this folder"),
        (
            link(lambda folder: folder.parent / "outside.safetensors"),
            f"names '{A}', which is a link out of this folder",
        ),
        (link(lambda folder: "../outside.safetensors"), f"names '{A}', which is a link out of this folder"),
        (without_a_name, "has 1 tensors that model.safetensors.index.json has not in it: bert.pooler.dense.bias"),
        (with_a_name, f"{A} lacks 1 tensors that model.safetensors.index.json has in it: bert.extra"),
        (in_both, f"{A} has .* tensors that model.safetensors.index.json has not in it"),
        (gone, f"{A} does not exist"),
        (cut, f"{A} cannot be read as safetensors"),
        (other_map([A]), r"weight_map must be an object of names and files, not \['model"),
        (other_map({}), "weight_map must be an object of names and files, not {}"),
        (other_map({"a": 1}), "weight_map must be an object of names and files, not {'a': 1}"),
    ],
)
def test_split_files_that_do_not_agree(tmp_path, change, words):
    folder = tmp_path / "model"
    save(BertForPreTraining, folder)
    index = split(folder)
    change(folder, index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match=words) as caught:
        BertForPreTraining.from_pretrained(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_name_that_is_in_the_index_twice(tmp_path):
    save(BertForPreTraining, tmp_path)
    text = json.dumps(split(tmp_path))
    text = text.replace('"weight_map": {', '"weight_map": {"bert.pooler.dense.bias": "x.safetensors", ')
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="'bert.pooler.dense.bias' is there more than once"):
        BertForPreTraining.from_pretrained(tmp_path)


def test_the_links_of_the_hubs_cache(tmp_path):
    folder = tmp_path / "models--a--b" / "snapshots" / "123"
    params = save(BertForPreTraining, folder)
    split(folder)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for path in [*folder.iterdir()]:
        path.rename(blobs / path.name)
        path.symlink_to(os.path.join("..", "..", "blobs", path.name))
    same(BertForPreTraining.from_pretrained(folder)[1], params)
    (folder / A).unlink()
    (folder / A).symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="a link out of this folder"):
        BertForPreTraining.from_pretrained(folder)


# --- flax_model.msgpack ------------------------------------------------------------------------------------------


def flax_tree(tensors):
    """PyTorch's tensors under the names, and in the shapes, of the old library's Flax models."""
    flat = {}
    for name, tensor in tensors.items():
        *parts, last = name.split(".")
        if last == "weight":
            last = "scale" if "LayerNorm" in name else "embedding" if "_embeddings" in name else "kernel"
        flat[(*parts, last)] = np.ascontiguousarray(tensor.T) if last == "kernel" else tensor
    return flax.traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize(
    "cls",
    [
        BertModel,
        BertForPreTraining,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForMultipleChoice,
        BertForQuestionAnswering,
    ],
)
def test_files_of_the_old_flax_models(tmp_path, cls):
    config = dataclasses.replace(CONFIG, id2label=("a", "b")) if "Answering" in cls.__name__ else CONFIG
    params = save(cls, tmp_path, dataclasses.replace(config, tie_word_embeddings=cls is not BertForMaskedLM))
    tree = flax_tree({n: t for n, t in taken(tmp_path).items() if n != "cls.predictions.decoder.bias"})
    if cls is BertForPreTraining:
        layer = tree["bert"]["encoder"]["layer"]["0"]
        assert layer["attention"]["self"]["query"]["kernel"].shape == (8, 8)
        assert layer["intermediate"]["dense"]["kernel"].shape == (8, 12)
        assert tree["bert"]["embeddings"]["word_embeddings"]["embedding"].shape == (20, 8)
        assert tree["cls"]["predictions"]["bias"].shape == (20,)
    for content in (tree, {"params": tree}):
        (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(content))
        same(loads_alone(cls, tmp_path)[1], params)
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), tree)
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(half))
    loaded = loads_alone(cls, tmp_path)[1]
    same(loaded, jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree["pooler"].pop("dense"), "has no pooler"),
        (lambda tree: tree["pooler"]["dense"].pop("bias"), "lacks 1 tensors: pooler.dense.bias"),
        (lambda tree: tree["pooler"]["dense"].update(bias=[1.0]), "pooler/dense/bias must be an array, not"),
        (lambda tree: tree["pooler"]["dense"].update(bias=1.0), "pooler/dense/bias must be an array, not 1.0"),
        (lambda tree: tree["pooler"]["dense"].update(bias=np.ones(7, np.float32)), r"is \(7,\), not \(8,\)"),
        (lambda tree: tree["pooler"]["dense"].update(bias=np.ones(8, int)), r"pooler.dense.bias \(int64\)"),
        (lambda tree: tree["pooler"]["dense"].update(bias=np.full(8, np.nan)), "not finite .* pooler.dense.bias"),
        (lambda tree: tree["pooler"]["dense"].update(weight=np.ones(8)), "has two tensors for pooler/dense/"),
        (lambda tree: tree.update({"a\nb": np.ones(8)}), r"unexpected tensors: 'a\\nb'"),
    ],
)
def test_msgpack_that_does_not_fit(tmp_path, change, words):
    save(BertModel, tmp_path)
    tree = flax_tree(taken(tmp_path))
    change(tree)
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    with pytest.raises((ValueError, UserWarning), match=words) as caught:
        loads_alone(BertModel, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81\x01\x02", b"\x81\x91\x01\x02", b"\x80"])
def test_damaged_msgpack(tmp_path, content):
    save(BertModel, tmp_path)
    taken(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}") as caught:
        BertModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_a_repository_lacks_is_looked_for_once_more(tmp_path, monkeypatch):
    params = save(BertModel, tmp_path)
    tree = flax_tree(taken(tmp_path))
    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        if "flax_model.msgpack" in allow_patterns:
            (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    same(BertModel.from_pretrained("some/name")[1], params)
    assert len(asked) == 2 and "flax_model.msgpack" not in asked[0]
    BertModel(CONFIG).save_pretrained(tmp_path, params)
    BertModel.from_pretrained("some/name")
    assert len(asked) == 3


# --- files that are refused --------------------------------------------------------------------------------------


class Trap:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            "pytorch_model.bin",
            "only pytorch_model.bin, a pickle, .* where PyTorch is: transformers.BertForTokenClassif",
        ),
        ("pytorch_model.bin.index.json", "only pytorch_model.bin.index.json, which names pickles"),
        (
            "tf_model.h5",
            r"transformers 4 .*BertForTokenClassification.from_pretrained\(folder, from_tf=True\).save_pre",
        ),
    ],
)
def test_what_is_never_read(tmp_path, file, words):
    folder = tmp_path / "model"
    save(BertForTokenClassification, folder)
    taken(folder)
    (folder / file).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ValueError, match=words):
        BertModel.from_pretrained(folder)
    # Neither is it where another name lends it a ride.
    (folder / file).rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        BertModel.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "flax_model.msgpack")
    with pytest.raises(ValueError, match="cannot be read as Flax's msgpack"):
        BertModel.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["import os; os.abort()", 3, "../x", None])
def test_the_command_names_no_other_class(tmp_path, name):
    save(BertModel, tmp_path)
    taken(tmp_path)
    edit(tmp_path, architectures=[name])
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"transformers.BertForPreTraining.from_pretrained\(folder\)"):
        BertModel.from_pretrained(tmp_path)


def test_googles_files(tmp_path):
    for name in ("bert_config.json", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001", "vocab.txt"):
        (tmp_path / name).write_bytes(b"{}")
    words = r"only bert_model.ckpt, TensorFlow's format.*'bert_model.ckpt.index', from_tf=True.*save_pretrained\('.'\)"
    with pytest.raises(ValueError, match=words) as caught:
        BertModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
