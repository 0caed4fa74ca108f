"""What changes under a run is seen and named; what does not change gives the same digests in every process."""

import os

import pytest

from train.data import cldr_pairs, python_docs
from train.data.fingerprint import changed, fingerprint, fingerprint_of, fingerprint_of_model
from train.errors import InputError


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("one.txt", "two.tsv.gz")]
    for path in paths:
        path.write_bytes(b"the data of " + path.name.encode())
    return paths


def test_a_file_that_changes_is_named(files):
    data = [str(path) for path in files]
    before = fingerprint(data)
    assert list(before) == data and len(set(before.values())) == 2
    os.utime(files[0], (0, 0))
    assert changed(before, fingerprint(data)) is None
    content = bytearray(files[1].read_bytes())
    content[3] ^= 1  # one bit, and the same length
    files[1].write_bytes(content)
    assert changed(before, fingerprint(data)) == data[1]
    files[1].unlink()
    with pytest.raises(InputError, match=f"^--eval.data: no such file: {files[1]}"):
        fingerprint(data, "--eval.data")


def test_every_file_of_a_model_counts(tmp_path):
    names = ["config.json", "model.safetensors", "source.spm", "spm.model", "vocab.txt"]
    for name in [*names, "README.md"]:
        (tmp_path / name).write_bytes(b"x")
    assert list(fingerprint_of_model(tmp_path)) == [str(tmp_path / name) for name in names]


def test_same_content_under_other_names_is_no_change():
    assert changed({"a": "1", "b": "2"}, {"b": "2", "c": "1"}) is None
    assert changed({"embedded (Python 3.11.7)": "1"}, {"embedded (Python 3.12.1)": "1"}) is None
    differs = changed({"embedded (Python 3.11.7)": "1"}, {"embedded (Python 3.12.1)": "2"})
    assert differs == "embedded (Python 3.11.7) (now embedded (Python 3.12.1))"
    assert changed({"a": "1"}, {"a": "1", "b": "2"}) == "nothing (now b)"
    assert changed({"a": "1", "b": "2"}, {"b": "2"}) == "a (now nothing)"
    assert changed({}, {}) is None


def test_embedded_text_has_a_name_and_a_digest_of_its_own():
    train, held_out = cldr_pairs.cldr_pairs()
    found = fingerprint_of(cldr_pairs.NAME, [*train, *held_out])
    assert found == fingerprint_of(cldr_pairs.NAME, [*train, *held_out])
    assert list(found) == [cldr_pairs.NAME] and cldr_pairs.NAME.startswith("embedded (CLDR, Babel ")
    assert found != fingerprint_of(cldr_pairs.NAME, [*held_out, *train])
    assert python_docs.NAME.startswith("embedded (Python 3.")
    assert fingerprint_of("x", [["ab"], ["c"]]) != fingerprint_of("x", [["a"], ["bc"]])
    assert fingerprint_of("x", [["a", "b"]]) != fingerprint_of("x", [["a"], ["b"]])
