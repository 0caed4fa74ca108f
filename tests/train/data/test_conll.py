"""Sentences with a tag for each token, from CoNLL files and tables; BIO is checked."""

import gzip
import json

import pytest

from train.data.conll import Tagged, read_tagged
from train.errors import InputError

COLUMNS = {"tokens": "tokens", "tags": "tags"}


def read(path):
    return read_tagged(str(path), COLUMNS, option="--data")


def message_of(path):
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


CONLL = """\
-DOCSTART- -X- -X- O

#text
EU NNP I-NP B-ORG
rejects  VBZ B-VP O
# # # O

New\tNNP\tI-NP\tB-LOC
York\tNNP\tI-NP\tI-LOC
Inc\tNNP\tI-NP\tB-LOC
"""


@pytest.mark.parametrize("name", ["a.conll", "a.conll.gz"])
def test_conll(tmp_path, name):
    path = tmp_path / name
    content = CONLL.encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read(path) == [
        Tagged(f"--data: {path}:4", ["EU", "rejects", "#"], ["B-ORG", "O", "O"]),
        Tagged(f"--data: {path}:8", ["New", "York", "Inc"], ["B-LOC", "I-LOC", "B-LOC"]),
    ]


@pytest.mark.parametrize("form", [lambda words: words, " ".join])
def test_tables(tmp_path, form):
    path = tmp_path / "a.jsonl"
    rows = [(["New", "York"], ["B-LOC", "I-LOC"]), (["a"], ["O"])]
    path.write_text("\n".join(json.dumps({"tokens": form(tokens), "tags": form(tags)}) for tokens, tags in rows))
    assert read(path) == [Tagged(f"--data: {path}:{line}", *row) for line, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nEU I-ORG\n", ":2: 'I-ORG' follows 'O'; where a name begins, IOB2 has B-ORG"),
        ("a B-ORG\n\nEU I-ORG\n", ":3: 'I-ORG' follows 'O'; where"),
        ("a B-PER\nEU I-ORG\n", ":2: 'I-ORG' follows 'B-PER'; where a name begins, IOB2 has B-ORG"),
        ("a B-\x01\n", ":1: the tag 'B-\\x01' is not O, B-TYPE or I-TYPE"),
        ("a S-PER\n", ":1: the tag 'S-PER' is not O, B-TYPE or I-TYPE"),
        ("a B-\n", ":1: the tag 'B-' is not O"),
        ("a b-PER\n", ":1: the tag 'b-PER' is not O"),
        ("a\tO\t\n", ":1: the tag '' is not O"),
        ("a O\nb\n", ":2 has one column; write a token and its tag"),
        ("a X O\nb O\n", ":2 has 2 columns, but the lines before it have 3"),
        ("a b\tO\n", ":1: a token must have no white space in it and not be empty: 'a b'"),
        ("a\u00a0b O\n", ":1: a token must have no white space"),
        ("\tO\n", ":1: a token must have no white space in it and not be empty: ''"),
        ("# text\na X O\n", ":1: the tag 'text' is not O"),
        ("-DOCSTART- O\n\n#\n", " has no sentences"),
        ("\n", " is empty"),
    ],
)
def test_wrong_lines_are_named(tmp_path, content, message):
    path = tmp_path / "a.conll"
    path.write_text(content)
    assert message_of(path).startswith(f"--data: {path}{message}")


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        (["a", "b"], ["O"], ":1 has 2 tokens and 1 tags (--columns.tokens and --columns.tags)"),
        ([], [], ":1 has no tokens"),
        (["a", "b c"], ["O", "O"], ":1: token 1: a token must"),
        (["a", "b"], ["O", "I-x"], ":1: token 1: 'I-x' follows 'O'"),
        (["a"], ["B-x y"], ":1: token 0: the tag 'B-x y' is not"),
        (["a"], "I", ":1: token 0: the tag 'I' is not"),
        (3, ["O"], ":1: the field of --columns.tokens must be a list"),
    ],
)
def test_wrong_rows_are_named(tmp_path, tokens, tags, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"tokens": tokens, "tags": tags}))
    assert message_of(path).startswith(f"--data: {path}{message}")


def test_real_sentences(shared_data):
    for part, count in (("train", 3394), ("valid", 1009), ("test", 1287)):
        sentences = read(shared_data / "wnut17" / f"{part}.conll.gz")
        assert len(sentences) == count
    types = {tag[2:] for sentence in sentences for tag in sentence.tags if tag != "O"}
    assert types == {"corporation", "creative-work", "group", "location", "person", "product"}
    assert len(read(shared_data / "snips" / "train.jsonl.gz")) == 13_084
