"""Documents for pretraining: lists of sentences, from text, JSONL or TFDS."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.data.files import read_lines
from train.data.tfds import is_tfds, tfds_source
from train.errors import InputError

Document = list[str]


def read_documents(data: Sequence[str], field: str = "text", option: str = "--data") -> list[Document]:
    """Reads the documents of all entries of `data`, in order; documents without text are dropped.

    An entry is one of
        * a text file: a paragraph a line, a blank line between documents (the end of the file ends one too),
        * JSONL (`.jsonl`): a document a line, its text in `field`, paragraphs on lines of their own,
        * TFDS data (see `train.data.tfds`), split `train` where the entry names none: a document a row.
    Files may end in `.gz`. Wiki headings (`= Title =` lines, Wiki-40B's titles and sections) are left out.

    Raises:
        InputError: an entry cannot be read (the message names file and line), or there is no text at all.
    """
    documents: list[Document] = []
    for entry in data:
        if is_tfds(entry):
            found = _tfds_documents(entry, field, option)
        elif entry.removesuffix(".gz").endswith(".jsonl"):
            found = _jsonl_documents(entry, field, option)
        else:
            found = _text_documents(entry, option)
        documents.extend(document for document in found if document)
    if not documents:
        raise InputError(f"{option}: no text in {', '.join(data) or 'an empty list'}; name at least one file of text")
    return documents


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


_BOUNDARY = re.compile(r"""[.!?…]+["'”’»)\]]*\s+|[。！？]+[”’」』）]*\s*""")
_LAST_WORD = re.compile(r"[^\W\d_][\w.’'-]*$")
_OPENING = re.compile(r"""["'“‘«‹(\[—–_*-]*\s?""")
# Never the last word of a sentence; those of the second line only before a number.
_TITLE = re.compile("mr|mrs|ms|messrs|mme|mlle|dr|st|prof|gen|col|capt|lt|sgt|rev|hon|jr|sr|vs|cf|viz|gov")
_COUNTED = re.compile("nos?|figs?|vol|pp?|ch|sec|art|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec")
_ACRONYM = re.compile(r"[^\W\d_](\.[^\W\d_])+")  # i.e, U.S


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the end mark at `match` ends the sentence that began at `start`."""
    opening = _OPENING.match(text, match.end())
    following = text[opening.end() if opening else match.end() :][:1]
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


def _text_documents(path: str, option: str) -> Iterator[Document]:
    document: Document = []
    for _, line in read_lines(path, option):
        line = line.strip()
        if not line:
            yield document
            document = []
        elif not _HEADING.fullmatch(line):
            document.extend(split_sentences(line))
    yield document


_HEADING = re.compile(r"=(.*\S.*)=")


def _jsonl_documents(path: str, field: str, option: str) -> Iterator[Document]:
    for number, line in read_lines(path, option):
        if not line.strip():
            continue
        place = f"{option}: {Path(path)}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{place} is not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict) or field not in row:
            has = f"has {', '.join(map(str, row)) or 'no fields'}" if isinstance(row, dict) else "is no object"
            raise InputError(f"{place} needs an object with the field {field!r}, but the line {has}")
        if not isinstance(row[field], str):
            raise InputError(f"{place}: the field {field!r} must be a string, not {type(row[field]).__name__}")
        yield _sentences_of(row[field])


def _tfds_documents(spec: str, field: str, option: str) -> Iterator[Document]:
    source = tfds_source(spec, "train", option)
    first = source[0]
    if not isinstance(first.get(field), str):
        raise InputError(f"{option}: {spec} has no text field {field!r}; its fields are {', '.join(first)}")
    for index in range(len(source)):
        yield _sentences_of(source[index][field])


def _sentences_of(text: str) -> Document:
    """The sentences of a text with paragraphs on lines of their own, or in the format of Wiki-40B."""
    if "_START_ARTICLE_" in text:  # what follows other markers are titles and section headings
        paragraphs = re.findall(r"_START_PARAGRAPH_\s(.*?)(?=_START_(?:ARTICLE|SECTION|PARAGRAPH)_|\Z)", text, re.S)
        text = "\n".join(paragraphs).replace("_NEWLINE_", "\n")
    return [sentence for line in text.splitlines() for sentence in split_sentences(line)]
