import gzip
import hashlib
import os

import pytest

from train.data.files import file_digest, read_lines
from train.errors import InputError


def failing(path):
    with pytest.raises(InputError) as caught:
        list(read_lines(path, "--data"))
    message = str(caught.value)
    assert message.startswith("--data: ") and str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_lines_have_numbers_and_no_newlines(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    data = "\ufeffone\r\n\n drei ß\u2028x\nend".encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert list(read_lines(path)) == [(1, "one"), (2, ""), (3, " drei ß\u2028x"), (4, "end")]


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bad_utf8_names_line_and_offset(tmp_path, suffix, mark):
    path = tmp_path / f"a.{suffix}"
    data = mark + "é\nab".encode() + b"\xff\n"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    message = failing(path)
    assert f"{path}:2" in message and "0xff" in message and f"offset {len(mark) + 5};" in message


def test_bad_utf8_on_the_first_line_counts_the_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\xff")
    assert "offset 4;" in failing(path)


def test_missing_and_directory_and_empty(tmp_path):
    assert "no such file" in failing(tmp_path / "none.txt")
    assert "directory" in failing(tmp_path)
    for content in ("", " \n\t\n"):
        (tmp_path / "e.txt").write_text(content)
        assert "empty" in failing(tmp_path / "e.txt")


def test_damaged_gzip(tmp_path):
    path = tmp_path / "a.gz"
    whole = gzip.compress(b"some text\n" * 1000)
    flipped = whole[:20] + bytes([whole[20] ^ 0xFF]) + whole[21:]
    for data in (b"plain text\n", whole[:-12], flipped, whole + b"tail"):
        path.write_bytes(data)
        assert "gzip" in failing(path)


def test_gzip_members_are_one_text(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one\ntw") + gzip.compress(b"o\n") + gzip.compress(b"three"))
    assert [line for _, line in read_lines(path)] == ["one", "two", "three"]
    path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n")[:-9])
    assert "gzip" in failing(path)


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_nul_is_no_text(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    data = b"one\ntw\0o\n"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    message = failing(path)
    assert f"{path}:2" in message and "NUL at character 3" in message


def test_what_can_be_read_only_once_or_never_ends_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero", "/dev/null"):
        assert "write what it gives into a file" in failing(path)


def odd_names(folder):
    loop = folder / "loop"
    loop.symlink_to(loop)
    (folder / "file").write_text("text\n")
    return [str(loop), str(folder / "file" / "below"), "a\0b", "n" * 5000, "lone \ud800", "", "two\nlines", str(folder)]


def test_names_that_lead_nowhere(tmp_path):
    for name in odd_names(tmp_path):
        for read in (lambda path: list(read_lines(path)), file_digest):
            with pytest.raises(InputError, match="^--data: ") as caught:
                read(name)
            assert str(caught.value).isprintable() and len(str(caught.value)) < 700


def test_without_permission(tmp_path):
    if not os.geteuid():
        pytest.skip("root may read everything")
    path = tmp_path / "a.txt"
    path.write_text("text\n")
    path.chmod(0)
    assert "Permission denied" in failing(path)


def test_digest_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"text\n"))
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reading_is_streaming(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" * 100_000 + b"\xff\n")
    lines = read_lines(path)
    assert next(lines) == (1, "fine")
    lines.close()
