"""Tables for fine-tuning: rows with named columns from TSV, CSV, JSONL, Parquet or TFDS, and checks of their fields."""

import csv
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.data.files import check_text, read_lines, read_objects, regular_file
from train.data.tfds import is_tfds, tfds_source
from train.errors import InputError
from transformer_jax.checks import listed, printed, shown

_LARGEST = float(np.finfo(np.float32).max)
_NO_LINE = ("Cc", "Zl", "Zp")  # control characters and ends of lines: a model's config.json has names of one line
_FORMATS = ".tsv, .csv or .jsonl (each also with .gz), .parquet, or tfds:NAME"


class Row(NamedTuple):
    """One row: where it is, for messages (`--data: file.tsv:12`), and its fields by role."""

    place: str
    fields: dict[str, Any]


def read_table(entry: str, columns: Mapping[str, str], *, option: str, split: str = "train") -> list[Row]:
    """Reads the rows of one entry of `--data`, and of each row the columns that are asked for.

    An entry is one of
        * TSV (`.tsv`): a header that names the columns, then a row a line; a quote is a character like any other,
        * CSV (`.csv`): the same with commas, and with double quotes around fields that hold commas or line ends,
        * JSONL (`.jsonl`): an object a line, whose keys are the columns; null is None,
        * Parquet (`.parquet`),
        * TFDS data (see `train.data.tfds`), where the integers of a class become its name, and -1 becomes None.
    Text files may end in `.gz`; their blank lines are left out.

    Args:
        columns: role -> name of the column, such as {"text": "sentence1"}: which `--columns.ROLE` says.
        option: what to blame in messages.
        split: the split of a TFDS data set that names none.

    Raises:
        InputError: the entry cannot be read or has another ending, there are no rows, the header names a column
            twice, a column is missing, a row has more or fewer fields than the header, or text is no text.
    """
    rows = [_row(place, fields, columns) for place, fields in _reader(entry)(entry, columns, option, split)]
    if not rows:
        raise InputError(f"{option}: {printed(entry)} has no rows; it needs at least one")
    return rows


# --- fields ------------------------------------------------------------------------------------------------------


def text_of(row: Row, role: str) -> str:
    """The text of a field, without white space around it.

    Raises:
        InputError: the field is no string, or blank.
    """
    value = row.fields[role]
    if not isinstance(value, str) or not value.strip():
        raise _unfit(row, role, "must be text that is not blank")
    return value.strip()


def label_of(row: Row, role: str) -> str | None:
    """The name of a class: a string, an integer in digits, `true` or `false`; None where the field is None.

    Raises:
        InputError: the field is anything else, blank, or not one line of text.
    """
    value = row.fields[role]
    if value is None:
        return None
    if isinstance(value, int):
        return str(value).lower()
    return _name(text_of(row, role), row, role)


def labels_of(row: Row, role: str) -> tuple[str, ...] | None:
    """The names of several classes, perhaps none: a list, or a string with `|` between; None where the field is None.

    Each is there once, without white space around it; blank ones are left out.

    Raises:
        InputError: the field is neither, an item of the list is no string, or a name is not one line of text.
    """
    value = row.fields[role]
    if value is None:
        return None
    names = value.split("|") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _unfit(row, role, "must be a list of strings, or a string with | between them")
    return tuple(dict.fromkeys(_name(name.strip(), row, role) for name in names if name.strip()))


def number_of(row: Row, role: str) -> float:
    """The number of a field; a string such as "3.8" counts as one.

    Raises:
        InputError: the field is no number, or not finite in float32.
    """
    value = row.fields[role]
    try:
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise _unfit(row, role, "must be a finite number")
    return number


def list_of(row: Row, role: str) -> list[str]:
    """The list of strings of a field; a string is split at white space. It may be empty.

    Raises:
        InputError: the field is neither, or an item of the list is no string.
    """
    value = row.fields[role]
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _unfit(row, role, "must be a list of strings, or a string to be split at blanks")
    return list(value)


def option_of(role: str) -> str:
    """The option that names the column of a role."""
    return f"--columns.{role.replace('_', '-')}"


def _unfit(row: Row, role: str, wanted: str) -> InputError:
    return InputError(f"{row.place}: the field of {option_of(role)} {wanted}, not {shown(row.fields[role])}")


def _name(name: str, row: Row, role: str) -> str:
    """The name of a class, which is one line of text."""
    if any(unicodedata.category(character) in _NO_LINE for character in name):
        raise InputError(f"{row.place}: the field of {option_of(role)} must be a name of one line, not {shown(name)}")
    return name


# --- rows --------------------------------------------------------------------------------------------------------

_Rows = Iterator[tuple[str, Mapping[str, Any]]]


def _reader(entry: str) -> Callable[[str, Mapping[str, str], str, str], _Rows]:
    """The function (entry, columns, option, split) -> rows with all of their columns."""
    if is_tfds(entry):
        return _tfds_rows
    if entry.endswith(".parquet"):
        return _parquet_rows
    for ending, reader in ((".tsv", _tsv_rows), (".csv", _csv_rows), (".jsonl", _jsonl_rows)):
        if entry.removesuffix(".gz").endswith(ending):
            return reader
    return _no_table


def _no_table(entry: str, columns: Mapping[str, str], option: str, split: str) -> _Rows:
    regular_file(entry, option)
    raise InputError(f"{option}: {printed(entry)} has no ending that says what it is: {_FORMATS}")


def _tsv_rows(path: str, columns: Mapping[str, str], option: str, split: str) -> _Rows:
    lines = ((number, line.split("\t")) for number, line in read_lines(path, option) if line)
    yield from _with_header(lines, path, columns, option, "write a blank for a tab within a text")


def _csv_rows(path: str, columns: Mapping[str, str], option: str, split: str) -> _Rows:
    yield from _with_header(_csv_fields(path, option), path, columns, option, "quote what holds commas")


def _csv_fields(path: str, option: str) -> Iterator[tuple[int, list[str]]]:
    """(Number of the line on which it begins, fields) of each row, as Python's csv reads them."""
    reader = csv.reader((f"{line}\n" for _, line in read_lines(path, option)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            reason = str(error).partition(" - ")[0]  # what follows speaks to programmers
            raise InputError(f"{option}: {printed(path)}:{number} is not CSV: {reason}") from error
        if fields is None:
            return
        if fields:
            yield number, fields


def _with_header(
    lines: Iterator[tuple[int, list[str]]], path: str, columns: Mapping[str, str], option: str, advice: str
) -> _Rows:
    """Rows by the names of the first one."""
    header: list[str] | None = None
    for number, fields in lines:
        place = f"{option}: {printed(path)}:{number}"
        if header is None:
            header = [name.strip() for name in fields]
            _check_header(header, columns, place)
        elif len(fields) != len(header):
            raise InputError(f"{place} has {len(fields)} fields for the header's {len(header)} columns; {advice}")
        else:
            yield place, dict(zip(header, fields, strict=True))


def _jsonl_rows(path: str, columns: Mapping[str, str], option: str, split: str) -> _Rows:
    yield from read_objects(path, option)


def _parquet_rows(path: str, columns: Mapping[str, str], option: str, split: str) -> _Rows:
    import pyarrow.parquet

    name = printed(path)
    place = f"{option}: {name}"
    file = regular_file(path, option)
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            header = table.schema_arrow.names
            _check_header(header, columns, place)
            names = list(dict.fromkeys(columns.values()))
            found = table.read(columns=names, use_threads=False)
            values = [found.column(column).to_pylist() for column in names]
    except InputError:
        raise
    except Exception as error:  # pyarrow raises whatever its decoders do
        raise InputError(f"{place} cannot be read as Parquet: {printed(' '.join(str(error).split()))}") from error
    for index, fields in enumerate(zip(*values, strict=True)):
        yield f"{place}: row {index}", dict(zip(names, fields, strict=True))


def _tfds_rows(spec: str, columns: Mapping[str, str], option: str, split: str) -> _Rows:
    source = tfds_source(spec, split, option)
    for index in range(len(source)):
        row = source[index]
        named = {
            column: _class_name(_plain(row[column]), source.class_names.get(column))
            for column in columns.values()
            if column in row
        }
        yield f"{option}: {printed(spec)}: row {index}", row | named


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _class_name(value: Any, names: Sequence[str] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    return names[value] if 0 <= value < len(names) else None


def _check_header(header: Sequence[str], columns: Mapping[str, str], place: str) -> None:
    twice = [name for index, name in enumerate(header) if name in header[:index]]
    if twice:
        raise InputError(f"{place} names the column {shown(twice[0])} twice; give each column a name of its own")
    _check_columns(header, columns, place)


def _check_columns(names: Sequence[str], columns: Mapping[str, str], place: str) -> None:
    for role, column in columns.items():
        if column not in names:
            has = listed([printed(name) for name in names], 20) or "none"
            raise InputError(f"{place} has no column {shown(column)}, which {option_of(role)} names; it has {has}")


def _row(place: str, fields: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    _check_columns(list(fields), columns, place)
    for role, column in columns.items():
        value = fields[column]
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str):
                check_text(text, f"{place}: the field of {option_of(role)}")
    return Row(place, {role: fields[column] for role, column in columns.items()})
