import gzip
import json
import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import documents
from train.data.documents import hold_out, read_documents, split_sentences
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
    read = read_documents([str(one), str(two)])
    assert read.documents == [["A b.", "C d.", "E f."], ["G h."], ["I j."]]
    assert read.left_out == {"wiki headings": 1}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_jsonl_documents(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    rows = [{"body": "A b. C d.\n\nE f."}, {"body": " "}, {"body": "G é."}]
    data = "\n".join([*map(json.dumps, rows), ""]).encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    read = read_documents([str(path)], field="body")
    assert read.documents == [["A b.", "C d.", "E f."], ["G é."]]
    assert read.left_out == {"records without text": 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{nope", "not JSON"),
        ('["text"]', "no object"),
        ('{"body": "x"}', "has body"),
        ('{"text": 3}', "not int"),
        ("[" * 100_000, "not JSON"),
        ('{"text": "x", "id": ' + "9" * 6000 + "}", "not JSON"),
        ('{"text": "x", "text": "y"}', "'text' occurs twice"),
        ('{"text": "half \\ud83d of it"}', "half a surrogate pair, '\\ud83d', at character 6"),
        ('{"text": "nul \\u0000"}', "NUL at character 5"),
        (json.dumps({f"key\n{i}": 1 for i in range(10_000)}), "9995 more"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, line, expected):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Fine."}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        read_documents([str(path)])
    assert f"--data: {path}:2" in str(caught.value) and expected in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


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
    read = read_documents(["tfds:wiki40b/en"])
    assert read.documents == [["First one.", "Second.", "Third.", "Fourth."], ["Plain text.", "More."]]
    assert read.left_out == {"wiki headings": 3}
    rows.append({"text": "a\0"})
    with pytest.raises(InputError, match="--data: tfds:wiki40b/en: row 2 has a NUL"):
        read_documents(["tfds:wiki40b/en"])
    with pytest.raises(InputError, match="its fields are text"):
        read_documents(["tfds:wiki40b/en"], field="body")


SIZE = 2_000_000


@pytest.mark.parametrize(
    "line",
    [
        "word " * (SIZE // 5),
        "x" * SIZE,
        "." * SIZE,
        "." + "'" * SIZE,
        "He went. " * (SIZE // 9),
        "=" + "x" * SIZE,
        "文。" * (SIZE // 6),
    ],
    ids=["no full stop", "no white space", "full stops", "quotes", "many sentences", "half a heading", "cjk"],
)
def test_a_line_takes_as_long_as_it_is_long(tmp_path, line):
    path = tmp_path / "a.txt"
    path.write_text(line, encoding="utf-8")
    start = time.monotonic()
    (document,), left_out = read_documents([str(path)])
    assert time.monotonic() - start < 10
    assert max(map(len, document)) <= 10_000
    assert "".join(document).replace(" ", "") == line.replace(" ", "")
    assert list(left_out.values()) == ([1] if "文" not in line and "He" not in line else [])


def test_sentences_without_end_are_cut_at_white_space(tmp_path):
    path = tmp_path / "a.txt"
    words = [f"Word{i}" for i in range(3000)]
    path.write_text(f"Short one. {' '.join(words)}.\n\nNext.", encoding="utf-8")
    read = read_documents([str(path)])
    assert " ".join(read.documents[0]).split() == ["Short", "one.", *words[:-1], f"{words[-1]}."]
    assert [len(read.documents[0]), read.documents[0][0], read.documents[1]] == [4, "Short one.", ["Next."]]
    assert read.left_out == {"sentences over 10000 characters (cut into pieces)": 1}


def numbered(lengths):
    """Documents of so many sentences, all different."""
    return [[f"{document} {sentence}." for sentence in range(length)] for document, length in enumerate(lengths)]


def test_of_many_documents_every_twentieth_is_held_out():
    for count in (21, 40, 41, 100):
        made = numbered([1 + n % 3 for n in range(count)])
        train, held_out, note = hold_out(made)
        assert train == [document for index, document in enumerate(made) if index % 20]
        assert held_out == made[::20] and note == "every 20th document"


def test_exactly_20_documents_and_one_book_are_enough():
    train, held_out, note = hold_out(numbered([30] * 20))
    assert list(map(len, train)) == [28] * 20 and list(map(len, held_out)) == [2] * 20
    assert note == "the last twentieth of each document"
    (book,), (end,), _ = hold_out(numbered([6000]))
    assert len(end) == 300 and book + end == numbered([6000])[0]


def test_short_documents_are_not_cut_and_single_sentences_stay_in_training():
    made = numbered([2, 3, 3, 3, *[2] * 16])
    assert hold_out(made) == ([made[0], made[2], *made[4:]], [made[1], made[3]], "2 of 20 documents")
    train, held_out, note = hold_out(numbered([1, 40, 30]))
    assert list(map(len, train)) == [1, 38, 28] and list(map(len, held_out)) == [2, 2]
    assert note == "the last twentieth of each document"
    train, held_out, note = hold_out(numbered([40, 1, 1]))
    assert list(map(len, train)) == [38, 1] and list(map(len, held_out)) == [2, 1]
    assert note == "the last twentieth of each document and 1 of one sentence"
    assert hold_out(numbered([1, 1])) == ([["1 0."]], [["0 0."]], "1 of one sentence")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([1, 1, 2, 3, 4, 5, 41]), min_size=1, max_size=6))
def test_held_out_sentences_are_no_others_and_both_sides_can_pair_if_at_all(lengths):
    made = numbered(lengths)
    if lengths == [1]:
        with pytest.raises(InputError, match=r"^--data: .*--eval\.data"):
            hold_out(made)
        return
    train, held_out, _ = hold_out(made)
    assert train and held_out and all(train) and all(held_out)
    assert sorted(s for d in [*train, *held_out] for s in d) == sorted(s for d in made for s in d)

    def can_pair(side):
        return len(side) > 1 and max(side) > 1

    # Each document may be cut after any sentence, or be on one side whole. Two or three short ones are left alone.
    cuts = product(*(range(length + 1) for length in (min(length, 4) for length in lengths)))
    sides = (
        ([c for c in cut if c], [min(n, 4) - c for n, c in zip(lengths, cut, strict=True) if n > c]) for cut in cuts
    )
    possible = any(can_pair(one) and can_pair(other) for one, other in sides)
    if max(lengths) > 3 or len(lengths) > 3:
        assert (can_pair(list(map(len, train))) and can_pair(list(map(len, held_out)))) == possible


def test_books_and_wikitext(shared_data):
    books, left_out = read_documents([str(shared_data / "books" / "sherlock_holmes.txt.gz")])
    assert not left_out
    assert len(books) == 1
    lengths = [len(sentence.split()) for sentence in books[0]]
    assert 5000 < len(lengths) < 9000
    assert max(lengths) < 250
    assert not [sentence for sentence in books[0] if sentence.endswith((" Mr.", " Mrs.", " Dr.", "St."))][3:]
    wiki, left_out = read_documents([str(shared_data / "wikitext2" / "valid.txt.gz")])
    assert list(left_out) == ["wiki headings"] and left_out["wiki headings"] > len(wiki) // 2
    assert len(wiki) > 100 and not [document for document in wiki if document[0].startswith("=")]
