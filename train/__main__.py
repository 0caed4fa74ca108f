"""`python -m train <job>`: reads the options, runs the job, and turns what went wrong into one line and an exit code.

Exit codes: 0 done; 1 the run cannot go on; 2 wrong input or option; 3 training diverged; 4 the run folder cannot be
written any more; 128 + n ended by signal n (130 SIGINT, 143 SIGTERM, 129 SIGHUP), with the state saved.
"""

import contextlib
import importlib
import io
import itertools
import os
import sys
from typing import Any

import jax
import tyro

from train.errors import InputError, RunError
from train.signals import Interrupted
from train.terminal import one_line, open_streams, say
from transformer_jax.checks import printed

# Job -> the module that holds it and the class of its options.
JOBS = {
    "pretrain": ("train.pretrain", "PretrainConfig"),
    "finetune": ("train.finetune", "FinetuneConfig"),
    "translate": ("train.translate", "TranslateConfig"),
}
USAGE = f"usage: python -m train {{{'|'.join(JOBS)}}} [options]; --help behind a job lists its options"


def run(args: list[str]) -> int:
    """Runs a job; returns the exit code."""
    open_streams()
    try:
        return run_job(args)
    except (InputError, RunError) as error:
        return fail(str(error), error.exit_code)
    except Interrupted as error:
        return fail(f"stopped by {error.signal.name} {error.message}", error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on from the last checkpoint, if there is one", 130)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return fail(f"{place}{error.strerror or error}", 4)


def run_job(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        say(USAGE)
        return 0 if args else 2
    name, *options = args
    if name not in JOBS:
        raise InputError(f"unknown job {name!r}: choose one of {', '.join(JOBS)}")
    module_name, config_name = JOBS[name]
    module = importlib.import_module(module_name)
    config = parse(getattr(module, config_name), name, options)
    if config is None:
        return 0
    if config.distributed:
        join_hosts()
    module.main(config)
    return 0


def join_hosts() -> None:
    """Meets the other hosts, which JAX finds by itself on TPU slices, under Slurm, Open MPI and Kubernetes."""
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--distributed: the other hosts were not found: {error}") from error


def parse(config_class: type, job: str, options: list[str]) -> Any:
    """The job's configuration, or None where its options were printed instead.

    Raises:
        InputError: an option is unknown, or its value is of another type; with what tyro says in its first paragraph.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, prog=f"python -m train {job}", args=options)
    except BrokenPipeError:  # `--help | head`: nobody reads the rest
        return None
    except SystemExit as stop:
        if not stop.code:
            return None
        reason = first_paragraph(said.getvalue()).removeprefix("Error parsing ")
        if len(reason) > 500:  # the name of the option may come behind its value
            reason = f"{reason[:300]} ... {reason[-200:]}"
        raise InputError(f"{printed(reason, 600)} (python -m train {job} --help lists the options)") from None


def first_paragraph(box: str) -> str:
    """What tyro says is wrong: it draws a box, with a title, then paragraphs between rules; the first one says it.

    The title is part of the box's border, or a paragraph of its own where the terminal has no lines to draw.
    """
    lines = [line.strip("│ ") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    paragraphs = [" ".join(group) for rule, group in itertools.groupby(lines, _is_rule) if not rule]
    return " ".join((paragraphs[1] if "╭" not in box and len(paragraphs) > 1 else paragraphs[0]).split())


def _is_rule(line: str) -> bool:
    return bool(line) and not set(line) - set("─-")


def fail(message: str, code: int) -> int:
    """Prints one line on stderr, if anybody reads it."""
    with contextlib.suppress(OSError):
        print(f"train: error: {one_line(message)}", file=sys.stderr, flush=True)
    return code


def main() -> int:
    """Runs a job for a shell."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would complain about it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
