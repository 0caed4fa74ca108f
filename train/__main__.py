"""`python -m train <job>`: reads the options, runs the job, and turns bad input into one line and exit code 2."""

import contextlib
import importlib
import io
import re
import sys

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
        module.main(parse(getattr(module, config_name), name, options))
    except InputError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on from the last checkpoint", code=130)
    return 0


def parse(config_class: type, job: str, options: list[str]) -> object:
    """The job's configuration. Raises InputError with what tyro says in its first paragraph, on one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, prog=f"python -m train {job}", args=options)
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro draws its errors into a box, in paragraphs between rules; the first one says what is wrong.
        paragraphs = re.split("─{20,}", said.getvalue())
        text = next((" ".join(re.sub("[╭╮╰╯│]", " ", p).split()) for p in paragraphs if "│" in p), "bad options")
        raise InputError(f"{text} (python -m train {job} --help lists the options)") from None


def fail(message: str, code: int = 2) -> int:
    """Prints one line on stderr."""
    print(f"train: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
