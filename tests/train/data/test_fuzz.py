"""Files of any bytes: read right, or refused in one line that names option and file; never anything else."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import check_line, damaged, fuzz, gzipped, lines_of
from train.data.documents import hold_out, read_documents
from train.data.files import read_lines
from train.data.parallel import read_pairs
from train.errors import InputError

# Characters that mean something to one of the readers, and any others.
MARKED = st.text(st.sampled_from("aB é.!?…\"')=。\t\n\r\\u\u2028\u00a0\u0085\ufeff"), max_size=60)
TEXTS = MARKED | MARKED | MARKED | st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "id", "\n"]), inner),
    max_leaves=6,
)
RECORDS = st.fixed_dictionaries({"text": TEXTS}) | st.dictionaries(st.sampled_from(["text", "id"]), JSON) | JSON


def outcome(read, path, data):
    """What `read` returns, or None after a check of the error; the file is as it was in both cases."""
    path.write_bytes(data)
    try:
        return read([str(path)])
    except InputError as error:
        assert str(error).startswith("--data: ")
        check_line(str(error), str(path))
        return None
    finally:
        assert path.read_bytes() == data


def check_documents(documents):
    """Every document has sentences, each of text that any tokenizer takes; and some can be held out."""
    assert documents and all(documents)
    for sentence in (sentence for document in documents for sentence in document):
        assert sentence == sentence.strip() != "" and "\0" not in sentence and sentence.encode() is not None
    if len(documents) > 1 or len(documents[0]) > 1:
        train, held_out, _ = hold_out(documents)
        assert train and held_out


def without_space(texts):
    return "".join("".join(text.split()) for text in texts)


PLAIN = st.lists(TEXTS, max_size=8).map("\n".join)


@pytest.mark.parametrize(("name", "contents"), [("a.txt", damaged(PLAIN)), ("a.txt.gz", gzipped(PLAIN))])
@fuzz
@given(data=st.data())
def test_text(tmp_path, name, contents, data):
    path = tmp_path / name
    read = outcome(read_documents, path, data.draw(contents))
    if read is not None:
        check_documents(read.documents)
        lines = [line.strip() for line in lines_of(path)]
        headings = [line for line in lines if line[:1] == line[-1:] == "=" and line[1:-1].strip()]
        kept = without_space(line for line in lines if line not in headings)
        assert without_space(sentence for document in read.documents for sentence in document) == kept
        assert read.left_out.get("wiki headings", 0) == len(headings)
        assert list(read_lines(path)) == list(enumerate(lines_of(path), 1))


GOOD = st.fixed_dictionaries({"text": MARKED}, optional={"id": st.integers() | MARKED})
LINES = (st.lists(RECORDS, max_size=5) | st.lists(GOOD, max_size=5)).map(lambda rows: "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(("name", "contents"), [("a.jsonl", damaged(LINES)), ("a.jsonl.gz", gzipped(LINES))])
@fuzz
@given(data=st.data())
def test_jsonl(tmp_path, name, contents, data):
    path = tmp_path / name
    read = outcome(read_documents, path, data.draw(contents))
    if read is not None:
        check_documents(read.documents)
        texts = [json.loads(line)["text"] for line in lines_of(path) if line.strip()]
        assert without_space(s for document in read.documents for s in document) == without_space(texts)
        assert len(texts) == len(read.documents) + read.left_out.get("records without text", 0)


ROWS = st.lists(st.tuples(TEXTS, TEXTS).map("\t".join), max_size=5).map("\n".join)
GOOD_ROWS = st.lists(
    st.tuples(*[st.text(string.ascii_letters + " é", min_size=1, max_size=9)] * 2).map("\t".join), min_size=1
).map("\r\n".join)


@pytest.mark.parametrize(
    ("name", "contents"), [("a.tsv", damaged(ROWS | GOOD_ROWS)), ("a.tsv.gz", gzipped(ROWS | GOOD_ROWS))]
)
@fuzz
@given(data=st.data())
def test_tsv(tmp_path, name, contents, data):
    path = tmp_path / name
    pairs = outcome(read_pairs, path, data.draw(contents))
    if pairs is not None:
        assert pairs == [tuple(side.strip() for side in line.split("\t")) for line in lines_of(path)]
        assert all(source and target for source, target in pairs)
