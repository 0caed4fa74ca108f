"""`python -m train <job>`: reads the options, runs the job, and turns what went wrong into one line and an exit code.

Exit codes: 0 done; 1 the run cannot go on; 2 wrong input or option; 3 training diverged; 4 the run folder cannot be
written any more; 128 + n ended by signal n (130 SIGINT, 143 SIGTERM, 129 SIGHUP), with the state saved.
"""

import importlib
import sys
from typing import Any

import jax

from train.errors import InputError, RunError
from train.options import options as job_options
from train.signals import Interrupted
from train.terminal import open_streams, say
from transformer_jax import command

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
    """The job's configuration, or None where its options were listed instead. Raises InputError."""
    if "--" in options:  # the parser would pass over it, and a job over data that a user calls so
        raise InputError(f"Unrecognized options: -- (python -m train {job} --help lists the options)")
    try:
        config = command.parse(config_class, f"python -m train {job}", options)
    except ValueError as error:
        raise InputError(str(error)) from None
    given = {option.replace("_", "-") for option in options}
    for option, value, _ in job_options(config) if config is not None else ():
        if value == () and option in given:  # `--data $FILES` of a variable that is not set
            raise InputError(f"{option} names nothing; give at least one, or leave it out")
    return config


def fail(message: str, code: int) -> int:
    """Prints one line on stderr, if anybody reads it."""
    return command.fail("train", message, code)


def main() -> int:
    """Runs a job for a shell."""
    return command.end(run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
