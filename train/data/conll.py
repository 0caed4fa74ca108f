"""Sentences whose tokens have tags, from CoNLL files and from tables; tags are checked to be BIO (IOB2)."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from train.data.files import read_lines
from train.data.tables import Row, list_of, option_of, read_table
from train.errors import InputError
from transformer_jax.checks import printed, shown

_TAG = re.compile(r"O|[BI]-[^\s\x00-\x1f\x7f-\x9f]+")


class Tagged(NamedTuple):
    """A sentence: where it is, for messages (its first line, or its row), its tokens and their tags, equally many."""

    place: str
    tokens: list[str]
    tags: list[str]


def read_tagged(entry: str, columns: Mapping[str, str], *, option: str, split: str = "train") -> list[Tagged]:
    """Reads sentences with a BIO tag for each token (Ramshaw and Marcus 1995, in the form IOB2).

    An entry is a CoNLL file (`.conll`, `.conll.gz`) or a table (see `read_table`) whose columns for the roles `tokens`
    and `tags` hold lists, or strings with blanks between. In CoNLL files a token is a line: two or more columns between
    tabs, or else blanks, the first the token and the last its tag. Blank lines end sentences. `-DOCSTART-` lines are
    left out, and lines of one column that begin with `#`.

    Args:
        columns: the names of the columns of `tokens` and `tags`; CoNLL files need none.
        option: what to blame in messages.
        split: the split of a TFDS data set that names none.

    Raises:
        InputError: the entry cannot be read, has no sentence, a line has one column or another number than those
            before it, tokens and tags are not equally many, a token is empty or has white space in it, or a tag is not
            O, B-TYPE or an I-TYPE that goes on with what B-TYPE began.
    """
    if not is_conll(entry):
        return [tagged_of(row) for row in read_table(entry, columns, option=option, split=split)]
    sentences = list(_sentences(entry, option))
    if not sentences:
        raise InputError(f"{option}: {printed(entry)} has no sentences; each token needs a line, with its tag")
    return sentences


def is_conll(entry: str) -> bool:
    """Whether the ending says that a file is CoNLL's."""
    return entry.removesuffix(".gz").endswith(".conll")


def tagged_of(row: Row) -> Tagged:
    """The sentence of a table's row with the roles `tokens` and `tags`.

    Raises:
        InputError: as `read_tagged`.
    """
    tokens, tags = list_of(row, "tokens"), list_of(row, "tags")
    if len(tokens) != len(tags):
        names = f"{option_of('tokens')} and {option_of('tags')}"
        raise InputError(f"{row.place} has {len(tokens)} tokens and {len(tags)} tags ({names}); each token needs one")
    if not tokens:
        raise InputError(f"{row.place} has no tokens ({option_of('tokens')}); a sentence needs at least one")
    for index, (token, tag) in enumerate(zip(tokens, tags, strict=True)):
        _check(token, tag, tags[index - 1] if index else "O", f"{row.place}: token {index}")
    return Tagged(row.place, tokens, tags)


def _sentences(path: str, option: str) -> Iterator[Tagged]:
    name = printed(path)
    sentence = Tagged("", [], [])
    width = 0
    for number, line in read_lines(path, option):
        place = f"{option}: {name}:{number}"
        columns = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
        if not line.strip() or columns[0] == "-DOCSTART-":
            if sentence.tokens:
                yield sentence
            sentence = Tagged("", [], [])
        elif len(columns) > 1 or not line.startswith("#"):
            if len(columns) == 1:
                raise InputError(f"{place} has one column; write a token and its tag, with a tab or a blank between")
            if width not in (0, len(columns)):
                raise InputError(f"{place} has {len(columns)} columns, but the lines before it have {width}")
            width = len(columns)
            token, tag = columns[0], columns[-1]
            _check(token, tag, sentence.tags[-1] if sentence.tags else "O", place)
            sentence = sentence if sentence.tokens else Tagged(place, [], [])
            sentence.tokens.append(token)
            sentence.tags.append(tag)
    if sentence.tokens:
        yield sentence


def _check(token: str, tag: str, before: str, place: str) -> None:
    """Checks one token and its tag, which follows the tag `before`."""
    if not token or any(map(str.isspace, token)):
        raise InputError(f"{place}: a token must have no white space in it and not be empty: {shown(token)}")
    if not _TAG.fullmatch(tag):
        raise InputError(f"{place}: the tag {shown(tag)} is not O, B-TYPE or I-TYPE (BIO, as in IOB2)")
    if tag[0] == "I" and before[1:] != tag[1:]:
        right = printed(f"B{tag[1:]}", 80)
        raise InputError(f"{place}: {shown(tag)} follows {shown(before)}; where a name begins, IOB2 has {right}")
