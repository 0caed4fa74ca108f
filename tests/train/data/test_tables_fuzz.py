"""Tables, CoNLL and SQuAD files of any bytes: read right, or refused in one line that names option and file."""

import csv
import io
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import broken, damaged, fuzz, gzipped, json_text, lines_of, outcome
from train.data.conll import read_tagged
from train.data.squad import read_questions
from train.data.tables import label_of, list_of, number_of, read_table, text_of
from train.errors import InputError

MARKED = st.text(st.sampled_from("aB é.,;\"'\t\n\r\\|#\u2028\u00a0\u0085\ufeff"), max_size=12)
TEXTS = MARKED | MARKED | st.text(max_size=12) | st.sampled_from(["3.8", "nan", "1e999", "O", "B-x", "I-x"])
NAMES = st.sampled_from(["text"] * 4 + ["label", "label", " text ", "", "texts", "a b", "\u00e9"])


def written(path, data):
    path.write_bytes(data)
    return lambda: read_table(str(path), {"text": "text", "label": "label"}, option="--data")


def check_rows(rows):
    """Every row's text is text, and each check of a field gives the right type or names the row."""
    for row in rows:
        assert row.place.startswith("--data: ") and set(row.fields) == {"text", "label"}
        for value in row.fields.values():
            assert not isinstance(value, str) or ("\0" not in value and value.encode() is not None)
        for check, kind in ((text_of, str), (label_of, str | None), (number_of, float), (list_of, list)):
            try:
                assert isinstance(check(row, "label"), kind)
            except InputError as error:
                assert str(error).startswith(row.place) and str(error).isprintable() and len(str(error)) < 1000


# --- TSV ---------------------------------------------------------------------------------------------------------

LINES = st.lists(st.lists(TEXTS, min_size=1, max_size=3).map("\t".join), max_size=4)
GOOD_LINES = st.lists(st.tuples(TEXTS, TEXTS).map("\t".join), max_size=4)
TSV = st.tuples(st.lists(NAMES, max_size=3).map("\t".join) | st.just("label\ttext"), LINES | GOOD_LINES).map(
    lambda parts: "\n".join([parts[0], *parts[1]])
)


@pytest.mark.parametrize(("name", "contents"), [("a.tsv", damaged(TSV)), ("a.tsv.gz", gzipped(TSV))])
@fuzz
@given(data=st.data())
def test_tsv(tmp_path, name, contents, data):
    rows = outcome(written(tmp_path / name, data.draw(contents)), tmp_path, InputError)
    if rows is not None:
        check_rows(rows)
        lines = [(number, line) for number, line in enumerate(lines_of(tmp_path / name), 1) if line]
        header = [column.strip() for column in lines[0][1].split("\t")]
        expected = [(number, dict(zip(header, line.split("\t"), strict=True))) for number, line in lines[1:]]
        assert [(int(row.place.rpartition(":")[2]), row.fields) for row in rows] == [
            (number, {role: fields[role] for role in ("text", "label")}) for number, fields in expected
        ]


# --- CSV ---------------------------------------------------------------------------------------------------------


@st.composite
def csv_files(draw):
    """Rows with a text and a label each, and the file that Python writes for them."""
    rows = draw(st.lists(st.tuples(TEXTS, TEXTS, st.just("x")), max_size=4))
    file = io.StringIO()
    # Python leaves a carriage return without quotes where lines end otherwise.
    ends = [(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_ALL, "\n")]
    quoting, end = draw(st.sampled_from(ends))
    csv.writer(file, quoting=quoting, lineterminator=end).writerows([("text", "label", "more"), *rows])
    return rows, file.getvalue()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@fuzz
@given(data=st.data())
def test_csv(tmp_path, name, data):
    rows, content = data.draw(csv_files())
    harmed = data.draw((gzipped if name.endswith("gz") else damaged)(st.just(content)))
    read = outcome(written(tmp_path / name, harmed), tmp_path, InputError)
    whole = harmed == content.encode() and "\0" not in content
    if read is not None:
        check_rows(read)
        if whole:  # line ends within fields become newlines
            fields = [[re.sub("\r+\n", "\n", field) for field in row[:2]] for row in rows]
            assert [[row.fields["text"], row.fields["label"]] for row in read] == fields
    assert read is not None or not whole or not rows


# --- JSONL -------------------------------------------------------------------------------------------------------

OBJECTS = st.lists(st.fixed_dictionaries({"text": TEXTS, "label": TEXTS | st.integers() | st.none() | st.floats()}))
JSONL = st.lists(json_text({"text": "a", "label": ["b", "c"], "id": {"text": 1}}), max_size=3).map("\n".join)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@fuzz
@given(data=st.data())
def test_jsonl(tmp_path, name, data):
    contents = JSONL | OBJECTS.map(lambda rows: "\n".join(map(json.dumps, rows)))
    content = data.draw((gzipped if name.endswith("gz") else damaged)(contents))
    rows = outcome(written(tmp_path / name, content), tmp_path, InputError)
    if rows is not None:
        check_rows(rows)
        expected = [json.loads(line) for line in lines_of(tmp_path / name) if line.strip()]
        assert repr([row.fields for row in rows]) == repr([{k: row[k] for k in ("text", "label")} for row in expected])


# --- Parquet -----------------------------------------------------------------------------------------------------


def parquet(columns, **options):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file, **options)
    return file.getvalue()


COLUMNS = {"text": ["a", "b", None], "label": [["O"], ["B-x", "I-x"], []], "more": [1, 2, 3]}


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"use_dictionary": False, "compression": "none"}])
@fuzz
@given(data=st.data())
def test_parquet(tmp_path, options, data):
    whole = parquet(COLUMNS, **options)
    content = data.draw(broken(whole) | damaged(st.just(whole)))
    rows = outcome(written(tmp_path / "a.parquet", content), tmp_path, InputError)
    if rows is not None:
        check_rows(rows)
    if content == whole:
        assert [row.fields["label"] for row in rows] == COLUMNS["label"]


# --- CoNLL -------------------------------------------------------------------------------------------------------

TOKENS = st.sampled_from(["a", "é", "#", "-DOCSTART-", "a\u00a0b", "\u200b", "x" * 3000]) | st.text(max_size=4)
TAGS = st.sampled_from(["O"] * 4 + ["B-x", "B-x", "I-x", "I-y", "B-a-b", "I-", "S-x", "o", "", "X"])
BETWEEN = st.sampled_from(["\t", "\t", " ", "  ", " X ", "\tX\t"])
CONLL = st.lists(st.tuples(TOKENS, BETWEEN, TAGS).map("".join) | st.sampled_from(["", " ", "#a", "#"]), max_size=8)
GOOD_CONLL = st.lists(st.sampled_from(["a O", "b B-x", "b B-x\nc I-x", "", "#a", "d\tO"]), max_size=8)


@pytest.mark.parametrize("name", ["a.conll", "a.conll.gz"])
@fuzz
@given(data=st.data())
def test_conll(tmp_path, name, data):
    contents = (CONLL | GOOD_CONLL).map("\n".join)
    path = tmp_path / name
    path.write_bytes(data.draw((gzipped if name.endswith("gz") else damaged)(contents)))
    sentences = outcome(lambda: read_tagged(str(path), {}, option="--data"), tmp_path, InputError)
    if sentences is not None:
        assert sentences
        lines = [re.split("\t| +", line.strip(" ")) for line in lines_of(path) if line.strip()]
        kept = [line for line in lines if len(line) > 1 and line[0] != "-DOCSTART-"]
        assert [token for sentence in sentences for token in sentence.tokens] == [line[0] for line in kept]
        assert [tag for sentence in sentences for tag in sentence.tags] == [line[-1] for line in kept]
        for sentence in sentences:
            assert len(sentence.tokens) == len(sentence.tags) and "".join(sentence.tokens).split() != []
            for before, tag in zip(["O", *sentence.tags], sentence.tags, strict=False):
                assert tag == "O" or tag[:2] == "B-" or (tag[:2] == "I-" and before[1:] == tag[1:])


# --- SQuAD -------------------------------------------------------------------------------------------------------

QAS = [
    {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}], "is_impossible": False},
    {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
    {"id": "3", "question": "Where?"},
]
SQUAD = {"version": "2.0", "data": [{"title": "t", "paragraphs": [{"context": "Ada met Bob.", "qas": QAS}]}]}


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@fuzz
@given(data=st.data())
def test_squad(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data.draw((gzipped if name.endswith("gz") else damaged)(json_text(SQUAD))))
    questions = outcome(lambda: read_questions(str(path), option="--data"), tmp_path, InputError)
    if questions is not None:
        tree = json.loads("\n".join(lines_of(path)))
        entries = [qa for article in tree["data"] for part in article["paragraphs"] for qa in part["qas"]]
        assert [question.id for question in questions] == [entry["id"] for entry in entries]
        for question in questions:
            assert question.question.strip() and question.context.strip() and question.id.strip()
            assert not (question.impossible and question.answers)
            for text, start in question.answers:
                assert text and question.context[start : start + len(text)] == text
        assert len({question.id for question in questions}) == len(questions)
