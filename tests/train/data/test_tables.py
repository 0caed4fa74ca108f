"""Rows with named columns from every format, and what is said of files and fields that are wrong."""

import json
from typing import ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from tests.train.stored import StoredRows, store, write
from train.data.tables import Row, label_of, labels_of, list_of, number_of, read_table, text_of
from train.errors import InputError


def message_of(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    return str(caught.value)


def read(path, **columns):
    return read_table(path, columns, option="--data")


FILES = {
    "a.tsv": 'text\tlabel\tid\na "quote\tx\t1\n\nb, c\t\t2\r\n',
    "a.csv": '\ufefftext,label,id\r\n"a ""quote",x,1\r\n\r\n"b, c",,2',
    "a.jsonl": '{"id": 1, "text": "a \\"quote", "label": "x"}\n\n{"text": "b, c", "id": 2, "label": ""}\n',
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_text_formats_hold_the_same_rows(tmp_path, name, suffix):
    path = write(tmp_path / f"{name}{suffix}", FILES[name])
    rows = read(path, text="text", label="label")
    lines = [1, 3] if name == "a.jsonl" else [2, 4]
    assert [row.place for row in rows] == [f"--data: {path}:{line}" for line in lines]
    assert [row.fields for row in rows] == [{"text": 'a "quote', "label": "x"}, {"text": "b, c", "label": ""}]


def test_columns_are_renamed_and_may_serve_twice(tmp_path):
    path = write(tmp_path / "a.tsv", "n\t s 1 \tn 2\n1\ta\t2\n")
    assert read(path, text="s 1", pair="s 1", label="n 2")[0].fields == {"text": "a", "pair": "a", "label": "2"}


def test_csv_fields_may_hold_line_ends_and_rows_are_named_by_their_first_line(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"two\r\nlines\n",x\nb,y\n')
    rows = read(path, text="text")
    assert [row.fields["text"] for row in rows] == ["two\nlines\n", "b"]
    assert [row.place.rpartition(":")[2] for row in rows] == ["2", "5"]


def test_parquet(tmp_path):
    path = str(tmp_path / "a.parquet")
    table = {"text": ["a", None], "score": [1.5, 2], "tags": [["O", "B-x"], []], "dotted.name": ["p", "q"]}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    rows = read(path, text="text", label="score", tags="tags", pair="dotted.name")
    assert [row.place for row in rows] == [f"--data: {path}: row 0", f"--data: {path}: row 1"]
    assert rows[0].fields == {"text": "a", "label": 1.5, "tags": ["O", "B-x"], "pair": "p"}
    assert rows[1].fields == {"text": None, "label": 2.0, "tags": [], "pair": "q"}
    assert "it has text, score, tags, dotted.name" in message_of(read, path, text="sentence")


class TinyClasses(StoredRows):
    """Text, a class, a number, and words with a class each."""

    FEATURES: ClassVar = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["no", "yes"]),
        "score": tfds.features.Scalar(np.float32),
        "words": tfds.features.Sequence(tfds.features.Text()),
        "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-x"])),
    }


def test_tfds_classes_become_names_and_minus_one_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    builder = TinyClasses(data_dir=tmp_path, file_format="array_record")
    row = {"text": "a é", "label": 1, "score": 0.5, "words": ["a", "b"], "tags": [1, 0]}
    store(builder, {"train": [row], "test": [row | {"label": -1, "tags": [], "text": "a\0"}]})
    (first,) = read("tfds:tiny_classes", text="text", label="label", score="score", tokens="words", tags="tags")
    assert first.place == "--data: tfds:tiny_classes: row 0"
    assert first.fields == {"text": "a é", "label": "yes", "score": 0.5, "tokens": ["a", "b"], "tags": ["B-x", "O"]}
    assert label_of(first, "label") == "yes" and number_of(first, "score") == 0.5
    (last,) = read_table("tfds:tiny_classes", {"label": "label", "tags": "tags"}, option="--data", split="test")
    assert last.fields == {"label": None, "tags": []} and label_of(last, "label") is None
    assert "row 0: the field of --columns.text has a NUL" in message_of(read, "tfds:tiny_classes:test", text="text")
    message = message_of(read, str(builder.data_path), text="sentence")
    assert "has no column 'sentence', which --columns.text names; it has" in message and "score" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "text\tlabel\na\tb\tc\n", ":2 has 3 fields for the header's 2 columns; write a blank for a tab"),
        ("a.tsv", "text\tlabel\na\tb\n\na\n", ":4 has 1 fields"),
        ("a.csv", 'text,label\n"a\nb",c\na,b,c\n', ":4 has 3 fields for the header's 2 columns; quote"),
        ("a.csv", 'text,label\na,"b\n', ":2 is not CSV: unexpected end of data"),
        ("a.csv", 'text,label\na,b\n"a"b,c\n', ":3 is not CSV: ',' expected after '\"'"),
        ("a.csv", "text,label\na\rb,c\n", ":2 is not CSV: new-line character seen in unquoted field"),
        ("a.csv", f"text\n{'x' * 200_000}\n", ":2 is not CSV: field larger than field limit (131072)"),
        ("a.tsv", "label\ttext\tlabel \n", ":1 names the column 'label' twice"),
        ("a.csv", "\n\na,b\n", ":3 has no column 'text', which --columns.text names; it has a, b"),
        ("a.tsv", "text\tlabel\n", " has no rows"),
        ("a.csv", "text", " has no rows"),
        ("a.tsv", "", " is empty"),
        ("a.jsonl", "\n \n", " is empty"),
        ("a.tsv", "text\na\0b\n", ":2 has a NUL at character 2"),
        ("a.csv", b"text\n\xff\n", ":2 is not UTF-8: byte 0xff at offset 5"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', ":2 needs an object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 1\n', ":2 is not JSON"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n', ":1 is not JSON that can be read (the key 'text' occurs twice"),
        ("a.jsonl", '{"text": "a"}\n{"texts": "a", "b\\n": 1}', ":2 has no column 'text', which --columns.text names"),
        ("a.jsonl", '{"text": "a\\ud800"}\n', ":1: the field of --columns.text has half a surrogate pair"),
        ("a.jsonl", '{"text": ["a", "\\u0000"]}\n', ":1: the field of --columns.text has a NUL"),
        ("a.parquet", b"PAR1 no", " cannot be read as Parquet"),
        ("a.txt", "text\na\n", " has no ending that says what it is: .tsv, .csv or .jsonl"),
        ("a.parquet.gz", "text\na\n", " has no ending"),
    ],
)
def test_wrong_files_are_named_with_the_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    assert message_of(read, path, text="text").startswith(f"--data: {path}{message}")


def test_missing_files_and_folders_of_any_ending(tmp_path):
    for name in ("none.tsv", "none.csv.gz", "none.jsonl", "none.parquet", "none"):
        assert message_of(read, str(tmp_path / name), text="text").startswith("--data: no such file")
    assert "is a directory" in message_of(read, str(tmp_path), text="text")


def test_a_role_of_two_words_is_named_as_its_option(tmp_path):
    path = write(tmp_path / "a.tsv", "a\nb\n")
    assert "which --columns.slot-tags names" in message_of(read, path, slot_tags="x")


# --- fields ------------------------------------------------------------------------------------------------------


def row(value):
    return Row("--data: a.tsv:2", {"label": value})


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (text_of, " a b\n", "a b"),
        (label_of, " a", "a"),
        (label_of, 3, "3"),
        (label_of, True, "true"),
        (label_of, None, None),
        (labels_of, "b|a", ("b", "a")),
        (labels_of, [" b", "", "b"], ("b",)),
        (labels_of, "", ()),
        (labels_of, None, None),
        (number_of, "3.8", 3.8),
        (number_of, " -1e2 ", -100.0),
        (number_of, 4, 4.0),
        (number_of, 0.5, 0.5),
        (list_of, " a  b\tc ", ["a", "b", "c"]),
        (list_of, "", []),
        (list_of, ["a b", ""], ["a b", ""]),
    ],
)
def test_fields_as_they_are_meant(check, value, expected):
    found = check(row(value), "label")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (text_of, ["", " \u00a0", None, 3, ["a"], {"a": 1}]),
        (label_of, ["", 1.5, ["a"], "a\nb", "\x7fa", "a\u2028b"]),
        (labels_of, [3, [1], "a|b\nc|d", ["\x00"]]),
        (number_of, ["", "x", "1_0", "nan", "inf", 1e39, "1e400", 10**400, True, None, ["1"], {}, float("nan")]),
        (list_of, [None, 3, ["a", 1], {"a": "b"}, [["a"]]]),
    ],
)
def test_unfit_fields_are_named_with_place_option_and_value(check, values):
    for value in values:
        message = message_of(check, row(value), "label")
        assert message.startswith("--data: a.tsv:2: the field of --columns.label must be ")


def test_real_tables(shared_data):
    train = read(str(shared_data / "movie_polarity" / "train.tsv.gz"), text="text", label="label")
    assert len(train) == 8530 and {label_of(row, "label") for row in train} == {"positive", "negative"}
    assert all(text_of(row, "text") for row in train)
    pairs = read(str(shared_data / "stsb_en" / "train.csv.gz"), text="sentence1", pair="sentence2", label="score")
    assert len(pairs) == 5749 and all(0 <= number_of(row, "label") <= 5 for row in pairs)
    spoken = read(str(shared_data / "snips" / "test.jsonl.gz"), tokens="tokens", label="intent")
    assert len(spoken) == 700 and all(list_of(row, "tokens") for row in spoken)
    assert len({label_of(row, "label") for row in spoken}) == 7 and json.dumps(spoken[0].fields)
