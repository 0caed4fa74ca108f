"""Reading text files line by line, with errors that name the place."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from train.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: str | Path, option: str = "--data") -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its newline) of a UTF-8 text file; a `.gz` suffix means gzip.

    The file is read as a stream. A byte order mark and carriage returns before a newline are dropped.

    Raises (when the place is reached):
        InputError: the path is missing or a directory, the gzip data is damaged, the file has nothing but white
            space, or its text is not UTF-8 (the message gives the byte offset in the decompressed data).
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{option}: no such file: {path}")
    if path.is_dir():
        raise InputError(f"{option}: {path} is a directory; name a file in it")
    offset, blank = 0, True
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = _decode(raw, offset, number, path, option)
                offset += len(raw)
                blank = blank and not line.strip()
                yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{option}: {path} is not a whole gzip file ({error}); write it again with gzip") from error
    except OSError as error:
        raise InputError(f"{option}: cannot read {path}: {error.strerror or error}") from error
    if blank:
        raise InputError(f"{option}: {path} is empty; it needs at least one line of text")


def _decode(raw: bytes, offset: int, number: int, path: Path, option: str) -> str:
    """Decodes one line that begins at byte `offset`."""
    if offset == 0 and raw.startswith(_BYTE_ORDER_MARK):
        raw, offset = raw[len(_BYTE_ORDER_MARK) :], len(_BYTE_ORDER_MARK)
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{option}: {path}:{number} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start}; "
            "save the file as UTF-8"
        ) from error
