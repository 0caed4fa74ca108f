import gzip
import json

import pytest

from train.data import documents
from train.data.documents import read_documents, split_sentences
from train.errors import InputError


@pytest.mark.parametrize(
    "sentences",
    [
        ["Mr. Smith met Dr. J. R. R. Tolkien on St. James's.", "He left."],
        ["He said “Go.”", "Then (as ever) he left.", "(Really.)", "Yes!"],
        ['"What?" cried Anna.', '"Yes!"', '"No," he said.'],
        ["Birds, e.g. Owls, fly.", "That is, i.e. They do."],
        ["See Fig. 3 and p. 7, vol. 2.", "No.", "Never!", "Born on Jan. 5."],
        ["It was I.", "The U.S. Army came...", "Version 3.11 is out.", "3 more."],
        ["said .", "He went ."],
        ["これは文です。", "次の文。"],
        ["Été.", "Ça va?", "Über alles!"],
    ],
)
def test_sentences(sentences):
    joined = ("" if sentences[0].startswith("これ") else " ").join(sentences)
    assert split_sentences(joined) == sentences


def test_splitting_keeps_every_character_but_white_space():
    text = "  A b.  C?! “D.” e... F g "
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
    assert split_sentences(" \t ") == []


def test_text_documents_end_at_blank_lines_and_at_the_end_of_a_file(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt.gz"
    one.write_text("A b. C d.\nE f.\n\n \n = Heading = \nG h.\n", encoding="utf-8")
    two.write_bytes(gzip.compress(b"I j."))
    assert read_documents([str(one), str(two)]) == [["A b.", "C d.", "E f."], ["G h."], ["I j."]]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_jsonl_documents(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    rows = [{"body": "A b. C d.\n\nE f."}, {"body": " "}, {"body": "G é."}]
    data = "\n".join([*map(json.dumps, rows), ""]).encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert read_documents([str(path)], field="body") == [["A b.", "C d.", "E f."], ["G é."]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{nope", "not JSON"),
        ('["text"]', "no object"),
        ('{"body": "x"}', "has body"),
        ('{"text": 3}', "not int"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, line, expected):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Fine."}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        read_documents([str(path)])
    assert f"--data: {path}:2" in str(caught.value) and expected in str(caught.value)


def test_no_text_at_all_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(InputError, match=r"a\.jsonl"):
        read_documents([str(path)])


def test_tfds_rows_are_documents_and_wiki40b_markers_go(monkeypatch):
    wiki = (
        "\n_START_ARTICLE_\nTitle\n_START_SECTION_\nHistory\n_START_PARAGRAPH_\nFirst one. Second."
        "_NEWLINE_Third.\n_START_SECTION_\nEnd\n_START_PARAGRAPH_\nFourth."
    )
    rows = [{"text": wiki}, {"text": "Plain text. More."}]
    monkeypatch.setattr(documents, "tfds_source", lambda spec, split, option: rows)
    assert read_documents(["tfds:wiki40b/en"]) == [
        ["First one.", "Second.", "Third.", "Fourth."],
        ["Plain text.", "More."],
    ]
    with pytest.raises(InputError, match="its fields are text"):
        read_documents(["tfds:wiki40b/en"], field="body")


def test_books_and_wikitext(shared_data):
    books = read_documents([str(shared_data / "books" / "sherlock_holmes.txt.gz")])
    assert len(books) == 1
    lengths = [len(sentence.split()) for sentence in books[0]]
    assert 5000 < len(lengths) < 9000
    assert max(lengths) < 250
    assert not [sentence for sentence in books[0] if sentence.endswith((" Mr.", " Mrs.", " Dr.", "St."))][3:]
    wiki = read_documents([str(shared_data / "wikitext2" / "valid.txt.gz")])
    assert len(wiki) > 100 and not [document for document in wiki if document[0].startswith("=")]
