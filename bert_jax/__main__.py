"""`python -m bert_jax JOB FOLDER < in > out`: a line in, a line out, in order, however many there are.

Exit codes: 0 done, or nobody reads what comes out; 2 wrong input or option; 4 what comes out cannot be written;
130 interrupted.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, get_type_hints

from bert_jax.jobs import JOBS, Job, Record
from bert_jax.pipelines import TextError, TextsCut
from transformer_jax import command
from transformer_jax.checks import check_value, require, shown

# Batches that are read, answered and written together: texts of like length meet, and memory is bounded.
CHUNK = 16

USAGE = f"usage: python -m bert_jax {{{'|'.join(JOBS)}}} FOLDER < in > out; --help behind a job lists its options"


def run(args: list[str]) -> int:
    """Runs a job; returns the exit code."""
    try:
        return run_job(args)
    except ValueError as error:
        return command.fail("bert_jax", str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        return command.fail("bert_jax", f"{error.filename or 'stdin or stdout'}: {error.strerror or error}", 4)


def run_job(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    name, *options = args
    require(name in JOBS, f"unknown job {shown(name)}: choose one of {', '.join(JOBS)}")
    job = command.parse(JOBS[name], f"python -m bert_jax {name}", options)
    if job is None:
        return 0
    hints = get_type_hints(type(job), include_extras=True)
    for field in dataclasses.fields(job):
        check_value(f"--{field.name.replace('_', '-')}", getattr(job, field.name), hints[field.name])
    require(sys.stdin is not None and sys.stdout is not None, "stdin and stdout must be open")
    with _told(0):
        pipeline = job.load()
    answer_lines(
        job, pipeline, sys.stdin.buffer, sys.stdout.buffer, 1 if sys.stdin.isatty() else CHUNK * job.batch_size
    )
    return 0


def answer_lines(job: Job, pipeline: Any, source: BinaryIO, sink: BinaryIO, chunk: int) -> None:
    """Writes an answer for each line, a chunk of them at a time.

    Raises:
        ValueError: a line is wrong; it says which.
    """
    numbered = enumerate(source, 1)
    while lines := list(itertools.islice(numbered, chunk)):
        first = lines[0][0]
        records = [_record(job, number, line) for number, line in lines]
        with _told(first):
            try:
                answers = list(job.answers(pipeline, records))
            except TextError as error:
                raise ValueError(f"line {first + error.index} {error.reason}") from error
        for record, answer in zip(records, answers, strict=True):
            sink.write(_line(job, record, answer).encode())
        sink.flush()


def _record(job: Job, number: int, line: bytes) -> Record:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"line {number} is not UTF-8 (byte {error.start})") from error
    try:
        return job.record(text.rstrip("\r\n"))
    except ValueError as error:
        raise ValueError(f"line {number} {error}") from error


def _line(job: Job, record: Record, answer: Record) -> str:
    if job.format == "jsonl":
        return json.dumps(_rounded(record | answer), ensure_ascii=False) + "\n"
    cells = (" ".join(cell.split()) if isinstance(cell, str) else str(_rounded(cell)) for cell in job.columns(answer))
    return "\t".join(cells) + "\n"


def _rounded(value: Any) -> Any:
    """Without digits that float32 does not have."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


@contextlib.contextmanager
def _told(first: int) -> Iterator[None]:
    """Warnings become lines on stderr; those about texts name lines, of which the given one is the first."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                told = warning.message
                if isinstance(told, TextsCut):
                    told = TextsCut.line(told.longest, "lines", [first + index for index in told.indices])
                command.tell("bert_jax", str(told))


if __name__ == "__main__":
    sys.exit(command.end(run(sys.argv[1:])))
