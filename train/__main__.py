"""`python -m train <job>`: reads the options, runs the job, and turns bad input into one line and exit code 2."""

import contextlib
import importlib
import io
import itertools
import sys
from typing import Any

import jax
import tyro

from train.errors import InputError

# Job -> the module that holds it and the class of its options.
JOBS = {"pretrain": ("train.pretrain", "PretrainConfig"), "translate": ("train.translate", "TranslateConfig")}
USAGE = f"usage: python -m train {{{'|'.join(JOBS)}}} [options]; --help behind a job lists its options"


def run(args: list[str]) -> int:
    """Runs a job; returns the exit code."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    name, *options = args
    if name not in JOBS:
        return fail(f"unknown job {name!r}: choose one of {', '.join(JOBS)}")
    try:
        module_name, config_name = JOBS[name]
        module = importlib.import_module(module_name)
        config = parse(getattr(module, config_name), name, options)
        if config.distributed:
            join_hosts()
        module.main(config)
    except InputError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on from the last checkpoint", code=130)
    return 0


def join_hosts() -> None:
    """Meets the other hosts, which JAX finds by itself on TPU slices, under Slurm, Open MPI and Kubernetes."""
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--distributed: the other hosts were not found: {error}") from error


def parse(config_class: type, job: str, options: list[str]) -> Any:
    """The job's configuration. Raises InputError with what tyro says in its first paragraph, on one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, prog=f"python -m train {job}", args=options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(
            f"{first_paragraph(said.getvalue())} (python -m train {job} --help lists the options)"
        ) from None


def first_paragraph(box: str) -> str:
    """tyro draws its errors into a box, in paragraphs between rules; the first one says what is wrong."""
    lines = [line.strip() for line in box.splitlines()]
    inside = [line[1:-1].strip() for line in lines if line[:1] in ("│", "|")]
    text = itertools.takewhile(lambda line: not line or set(line) - set("─-"), inside)
    return " ".join(" ".join(text).split()) or " ".join(box.split())


def fail(message: str, code: int = 2) -> int:
    """Prints one line on stderr."""
    print(f"train: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
