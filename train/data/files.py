"""Reading files: lines of text, JSON, digests, and errors that name the place."""

import gzip
import hashlib
import json
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.errors import InputError
from transformer_jax.checks import printed, shown

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: str | Path, option: str = "--data") -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its newline) of a UTF-8 text file; a `.gz` suffix means gzip.

    The file is read as a stream. A byte order mark and carriage returns before a newline are dropped.

    Raises (when the place is reached):
        InputError: the path is no regular file that can be read, the gzip data is damaged, the file has nothing but
            white space, or its text is not UTF-8 (the message gives the byte offset in the decompressed data) or no
            text (see `check_text`).
    """
    path = regular_file(path, option)
    offset, blank = 0, True
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = check_text(_decode(raw, offset, number, path, option), f"{option}: {printed(path)}:{number}")
                offset += len(raw)
                blank = blank and not line.strip()
                yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{option}: {printed(path)} is not a whole gzip file ({error}); write it again with gzip"
        ) from error
    except OSError as error:
        raise unreadable(path, option, error) from error
    if blank:
        raise InputError(f"{option}: {printed(path)} is empty; it needs at least one line of text")


def read_objects(path: str | Path, option: str = "--data") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place for messages, object) of a JSONL file: one JSON object a line; blank lines are left out.

    Raises (when the place is reached):
        InputError: as `read_lines` and `parse_json`, or a line is no object.
    """
    name = printed(path)
    for number, line in read_lines(path, option):
        if line.strip():
            place = f"{option}: {name}:{number}"
            row = parse_json(line, place, "; write one object a line")
            if not isinstance(row, dict):
                raise InputError(f"{place} needs an object, but the line is no object")
            yield place, row


def parse_json(text: str, place: str, advice: str = "") -> Any:
    """The value that a text of JSON stands for; floats may be nan or infinite, as Python reads them.

    Raises:
        InputError: it is no JSON, or an object has a key twice. `place` begins the message, `advice` ends it.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # no JSON, a key twice, 6,000 digits; or a thousand brackets
        raise InputError(f"{place} is not JSON that can be read ({error}){advice}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice in an object")
    return row


def file_digest(path: str | Path, option: str = "--data") -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits.

    Raises:
        InputError: the path is no regular file that can be read.
    """
    path = regular_file(path, option)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, option, error) from error


def check_text(text: str, place: str) -> str:
    """Returns the text, which every tokenizer can take: JSON may escape what is no character, binary files hold NUL.

    Raises:
        InputError: it has half a surrogate pair, which UTF-8 cannot hold, or a NUL. `place` begins the message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} has half a surrogate pair, {text[error.start]!r}, at character {error.start + 1}; write the "
            "whole character, or remove it"
        ) from error
    if "\0" in text:
        raise InputError(f"{place} has a NUL at character {text.index(chr(0)) + 1}; is it text, saved as UTF-8?")
    return text


def regular_file(path: str | Path, option: str = "--data") -> Path:
    """The path of what can be read twice and comes to an end: for the data, and for its fingerprint.

    Raises:
        InputError: there is none, or it is a folder, a pipe or a device.
    """
    if not str(path):
        raise InputError(f"{option}: the name of a file is empty")
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError(f"{option}: no such file: {printed(path)}") from error
    except (OSError, ValueError) as error:  # the latter: a name with NUL, or that the file system cannot encode
        raise unreadable(path, option, error) from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{option}: {printed(path)} is a directory; name a file in it")
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{option}: {printed(path)} is a pipe or a device and can be read only once, if it ends at all; write what "
            "it gives into a file (.gz is read as it is)"
        )
    return path


def unreadable(path: Path, option: str, error: OSError | ValueError) -> InputError:
    """The error for a file that the system cannot read, with the system's reason."""
    return InputError(f"{option}: cannot read {printed(path)}: {getattr(error, 'strerror', None) or error}")


def _decode(raw: bytes, offset: int, number: int, path: Path, option: str) -> str:
    """Decodes one line that begins at byte `offset`."""
    if offset == 0 and raw.startswith(_BYTE_ORDER_MARK):
        raw, offset = raw[len(_BYTE_ORDER_MARK) :], len(_BYTE_ORDER_MARK)
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{option}: {printed(path)}:{number} is not UTF-8: byte 0x{raw[error.start]:02x} at offset "
            f"{offset + error.start}; save the file as UTF-8"
        ) from error
