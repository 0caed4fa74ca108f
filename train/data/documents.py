"""Documents for pretraining: lists of sentences, from text, JSONL or TFDS."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from train.data.files import check_text, read_lines, read_objects
from train.data.tfds import is_tfds, tfds_source
from train.errors import InputError
from transformer_jax.checks import listed, printed

Document = list[str]

_HELD_OUT_EVERY = 20
_LONGEST_SENTENCE = 10_000  # characters; no row of tokens holds as many


class Documents(NamedTuple):
    """Documents without empty ones, and how many of what was not taken as it stood: words for it -> count."""

    documents: list[Document]
    left_out: dict[str, int]


def read_documents(data: Sequence[str], field: str = "text", option: str = "--data") -> Documents:
    """Reads the documents of all entries of `data`, in order; what is left out is counted.

    An entry is one of
        * a text file: a paragraph a line, a blank line between documents (the end of the file ends one too),
        * JSONL (`.jsonl`): a document a line, its text in `field`, paragraphs on lines of their own,
        * TFDS data (see `train.data.tfds`), split `train` where the entry names none: a document a row.
    Files may end in `.gz`. Wiki headings (`= Title =` lines, Wiki-40B's titles and sections) are left out, and records
    without text. Where no sentence ends for 10,000 characters, it is cut at white space, else within a word.

    Raises:
        InputError: an entry cannot be read (the message names file and line), or there is no text at all.
    """
    documents: list[Document] = []
    left_out: Counter[str] = Counter()
    for entry in data:
        if is_tfds(entry):
            found = _tfds_documents(entry, field, option)
        elif entry.removesuffix(".gz").endswith(".jsonl"):
            found = _jsonl_documents(entry, field, option)
        else:
            found = _text_documents(entry, option)
        left_out.update(found.left_out)
        for document in found.documents:
            long = sum(len(sentence) > _LONGEST_SENTENCE for sentence in document)
            left_out[f"sentences over {_LONGEST_SENTENCE} characters (cut into pieces)"] += long
            documents.append([piece for sentence in document for piece in _pieces(sentence)] if long else document)
    if not documents:
        names = listed([printed(entry) for entry in data]) or "an empty list"
        raise InputError(f"{option}: no text in {names}; name at least one file of text")
    return Documents(documents, {reason: count for reason, count in left_out.items() if count})


def hold_out(documents: Sequence[Document]) -> tuple[list[Document], list[Document], str]:
    """Splits documents into (training, held out, how in words), such that next sentences can be asked of both sides.

    Of more than 20 documents every twentieth is held out. Else it is the last twentieth of each document, at least
    two sentences of four, or one of two; where that is one document only, one of a single sentence joins it if
    training keeps two. Four or more documents which are all shorter are not cut: two of them are held out.

    Raises:
        InputError: there is one sentence only.
    """
    if len(documents) > _HELD_OUT_EVERY:
        train = [document for index, document in enumerate(documents) if index % _HELD_OUT_EVERY]
        return train, list(documents[::_HELD_OUT_EVERY]), f"every {_HELD_OUT_EVERY}th document"
    lengths = [len(document) for document in documents]
    if max(lengths) < 4 <= len(documents):
        longest, _, third, *_ = sorted(range(len(documents)), key=lambda index: -lengths[index])
        tails = [length * (index in (longest, third)) for index, length in enumerate(lengths)]
        note = f"2 of {len(documents)} documents"
    else:
        tails = [max(min(2, length // 2), length // _HELD_OUT_EVERY) for length in lengths]
        note = "the last twentieth of each document"
        if (cut := sum(tail > 0 for tail in tails)) < 2 and len(documents) > cut + 1:
            tails[lengths.index(1)] = 1
            note = f"{note} and 1 of one sentence" if cut else "1 of one sentence"
    if not any(tails):
        raise InputError(
            "--data: one sentence is too little to hold some of it out; give more text, or name other text with "
            "--eval.data"
        )
    train = [document[:-tail] if tail else document for document, tail in zip(documents, tails, strict=True)]
    held_out = [document[-tail:] for document, tail in zip(documents, tails, strict=True) if tail]
    return [document for document in train if document], held_out, note


def split_sentences(paragraph: str) -> list[str]:
    """Splits a paragraph into sentences.

    A sentence ends at `.`, `!`, `?` or `…` and the quotes or brackets that close after it, where white space and
    something other than a small letter follow, unless the full stop belongs to a title, an initial or an
    abbreviation; CJK full stops need no white space.
    """
    sentences, start = [], 0
    for match in _BOUNDARY.finditer(paragraph):
        if not _ends_sentence(paragraph, start, match):
            continue
        sentences.append(paragraph[start : match.end()].strip())
        start = match.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


# Only where a run of marks begins, and without giving back: a line of a million full stops takes no longer than others.
_BOUNDARY = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+\s+|[。！？]+[”’」』）]*\s*""")
_LAST_WORD = re.compile(r"[^\W\d_][\w.’'-]*$")
_OPENING = re.compile(r"""["'“‘«‹(\[—–_*-]*\s?""")
# Never the last word of a sentence; those of the second line only before a number.
_TITLE = re.compile("mr|mrs|ms|messrs|mme|mlle|dr|st|prof|gen|col|capt|lt|sgt|rev|hon|jr|sr|vs|cf|viz|gov")
_COUNTED = re.compile("nos?|figs?|vol|pp?|ch|sec|art|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec")
_ACRONYM = re.compile(r"[^\W\d_](\.[^\W\d_])+")  # i.e, U.S


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the end mark at `match` ends the sentence that began at `start`."""
    opening = _OPENING.match(text, match.end())
    after = opening.end() if opening else match.end()
    following = text[after : after + 1]
    if following.islower():
        return False
    mark = match.group().rstrip()
    if mark != ".":
        return True
    before = _LAST_WORD.search(text, max(start, match.start() - 40), match.start())  # what the full stop stands after
    word = before.group().lower() if before else ""
    if _COUNTED.fullmatch(word):
        return not following.isdigit()
    if len(word) == 1:  # an initial; but "I" ends a sentence more often than it stands for a name
        return word == "i" or (before is not None and before.group().islower())
    return not (_TITLE.fullmatch(word) or _ACRONYM.fullmatch(word))


def _pieces(sentence: str) -> list[str]:
    """A sentence of any length as pieces that are not too long."""
    return [piece.strip() for piece in _PIECE.findall(sentence)]


_PIECE = re.compile(rf"\S.{{0,{_LONGEST_SENTENCE - 1}}}(?!\S)|\S{{{_LONGEST_SENTENCE}}}", re.S)


def _text_documents(path: str, option: str) -> Documents:
    documents: list[Document] = [[]]
    headings = 0
    for _, line in read_lines(path, option):
        line = line.strip()
        if not line:
            documents.append([])
        elif line[0] == line[-1] == "=" and line[1:-1].strip():
            headings += 1
        else:
            documents[-1].extend(split_sentences(line))
    return Documents([document for document in documents if document], {_HEADINGS: headings})


def _jsonl_documents(path: str, field: str, option: str) -> Documents:
    def texts() -> Iterator[tuple[str, str]]:
        for place, row in read_objects(path, option):
            if field not in row:
                has = listed([printed(key) for key in row]) or "no fields"
                raise InputError(f"{place} needs an object with the field {field!r}, but the line has {has}")
            if not isinstance(row[field], str):
                raise InputError(f"{place}: the field {field!r} must be a string, not {type(row[field]).__name__}")
            yield row[field], f"{place}: the field {printed(field)}"

    return _records(texts())


def _tfds_documents(spec: str, field: str, option: str) -> Documents:
    source = tfds_source(spec, "train", option)

    def texts() -> Iterator[tuple[str, str]]:
        for index in range(len(source)):
            row, place = source[index], f"{option}: {printed(spec)}: row {index}"
            if not isinstance(row.get(field), str):
                raise InputError(f"{place} has no text field {field!r}; its fields are {', '.join(row)}")
            yield row[field], place

    return _records(texts())


def _records(texts: Iterator[tuple[str, str]]) -> Documents:
    """The documents of (text, its place): paragraphs are on lines of their own, or marked as in Wiki-40B."""
    documents = []
    headings = blank = 0
    for text, place in texts:
        check_text(text, place)
        if "_START_ARTICLE_" in text:  # what follows other markers are titles and section headings
            headings += len(re.findall("_START_(?:ARTICLE|SECTION)_", text))
            paragraphs = re.findall(r"_START_PARAGRAPH_\s(.*?)(?=_START_(?:ARTICLE|SECTION|PARAGRAPH)_|\Z)", text, re.S)
            text = "\n".join(paragraphs).replace("_NEWLINE_", "\n")
        document = [sentence for line in text.splitlines() for sentence in split_sentences(line)]
        blank += not document
        documents.append(document)
    return Documents([d for d in documents if d], {_HEADINGS: headings, "records without text": blank})


_HEADINGS = "wiki headings"
