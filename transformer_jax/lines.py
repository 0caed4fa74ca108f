"""Programs that answer lines: a line in, a line out, in order, however many there are.

Exit codes: 0 done, or nobody reads what comes out; 2 wrong input or option; 4 what comes out cannot be written;
130 interrupted.
"""

import abc
import contextlib
import dataclasses
import itertools
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, BinaryIO, Literal, get_type_hints

import tyro

from transformer_jax import command
from transformer_jax.checks import Range, check_value, listed, require, shown
from transformer_jax.texts import TextError, TextsCut

# Batches that are read, answered and written together: texts of like length meet, and memory is bounded.
CHUNK = 16

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job(abc.ABC):
    """Answers lines.

    Attributes:
        folder: what holds the model and its tokenizer; or a name of the Hugging Face hub
        batch_size: lines that go through the model together
        dtype: numbers to compute with
    """

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FOLDER")]]
    batch_size: Annotated[int, Range(1, 2**16)] = 32
    dtype: Literal["float32", "bfloat16"] = "float32"

    @abc.abstractmethod
    def load(self) -> Any:
        """What answers, made of the folder."""

    def text(self, number: int, line: bytes) -> str:
        """A line's text, without its end. Raises ValueError."""
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not UTF-8 (byte {error.start})") from error

    def record(self, line: str) -> Record:
        """What a line says. Raises ValueError."""
        return {"text": line}

    @abc.abstractmethod
    def answers(self, loaded: Any, records: Sequence[Record]) -> Iterable[Record]:
        """What comes of several lines."""

    @abc.abstractmethod
    def written(self, record: Record, answer: Record) -> str | None:
        """The line that says an answer; a job may have several, or None for none."""

    @property
    def whole(self) -> bool:
        """Whether nothing is written for a text that was cut."""
        return False


def json_line(said: Record) -> str:
    """A JSON object."""
    return json.dumps(_rounded(said), ensure_ascii=False)


def columns_line(cells: Iterable[Any]) -> str:
    """Columns, in whose texts all white space is one space."""
    return "\t".join(" ".join(cell.split()) if isinstance(cell, str) else str(_rounded(cell)) for cell in cells)


def _rounded(value: Any) -> Any:
    """Without digits that float32 does not have."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def usage(program: str, jobs: Mapping[str, type[Job]]) -> str:
    return f"usage: python -m {program} {{{'|'.join(jobs)}}} FOLDER < in > out; --help behind a job lists its options"


def run(program: str, jobs: Mapping[str, type[Job]], args: list[str]) -> int:
    """Runs one of a program's jobs; returns the exit code."""
    try:
        return _run_job(program, jobs, args)
    except ValueError as error:
        return command.fail(program, str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        return command.fail(program, f"{error.filename or 'stdin or stdout'}: {error.strerror or error}", 4)


def _run_job(program: str, jobs: Mapping[str, type[Job]], args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(usage(program, jobs))
        return 0 if args else 2
    name, *options = args
    require(name in jobs, f"unknown job {shown(name)}: choose one of {', '.join(jobs)}")
    job = command.parse(jobs[name], f"python -m {program} {name}", options)
    if job is None:
        return 0
    hints = get_type_hints(type(job), include_extras=True)
    for field in dataclasses.fields(job):
        check_value(f"--{field.name.replace('_', '-')}", getattr(job, field.name), hints[field.name])
    require(sys.stdin is not None and sys.stdout is not None, "stdin and stdout must be open")
    with _told(program, 0):
        loaded = job.load()
    chunk = 1 if sys.stdin.isatty() else CHUNK * job.batch_size
    answer_lines(program, job, loaded, sys.stdin.buffer, sys.stdout.buffer, chunk)
    return 0


def answer_lines(program: str, job: Job, loaded: Any, source: BinaryIO, sink: BinaryIO, chunk: int) -> None:
    """Writes an answer for each line, a chunk of them at a time.

    Raises:
        ValueError: a line is wrong; it says which.
    """
    numbered = enumerate(source, 1)
    while lines := list(itertools.islice(numbered, chunk)):
        first = lines[0][0]
        with _told(program, first) as caught:
            records = [_record(job, number, line) for number, line in lines]
            try:
                answers = list(job.answers(loaded, records))
            except TextError as error:
                raise ValueError(f"line {first + error.index} {error.reason}") from error
        cut = {i for told in caught if isinstance(told.message, TextsCut) for i in told.message.indices}
        written = [
            None if job.whole and i in cut else job.written(record, answer)
            for i, (record, answer) in enumerate(zip(records, answers, strict=True))
        ]
        sink.write("".join(f"{said}\n" for said in written if said is not None).encode())
        sink.flush()
        if silent := [str(first + i) for i, said in enumerate(written) if said is None]:
            command.tell(program, f"nothing is written for lines {listed(silent)}")


def _record(job: Job, number: int, line: bytes) -> Record:
    text = job.text(number, line)
    try:
        return job.record(text)
    except ValueError as error:
        raise ValueError(f"line {number} {error}") from error


@contextlib.contextmanager
def _told(program: str, first: int) -> Iterator[list[warnings.WarningMessage]]:
    """Warnings become lines on stderr; those about texts name lines, of which the given one is the first."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield caught
        finally:
            for warning in caught:
                told = warning.message
                if isinstance(told, TextsCut):
                    told = TextsCut.line(told.longest, "lines", [first + index for index in told.indices])
                command.tell(program, str(told))
