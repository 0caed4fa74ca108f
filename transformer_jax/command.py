"""What every command here does alike: options from a dataclass, errors on one line, streams that nobody reads."""

import contextlib
import io
import itertools
import os
import sys
from typing import Any

import tyro

from transformer_jax.checks import one_line, printed


def parse(config_class: type, prog: str, options: list[str]) -> Any:
    """The options as an object of that class, or None where they were listed instead (`--help`).

    Args:
        prog: the command, as a user types it.

    Raises:
        ValueError: an option is unknown, or its value is of another type; with what tyro says in its first paragraph.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, prog=prog, args=options)
    except BrokenPipeError:  # `--help | head`: nobody reads the rest
        return None
    except SystemExit as stop:
        if not stop.code:
            return None
        reason = first_paragraph(said.getvalue()).removeprefix("Error parsing ")
        if len(reason) > 500:  # the name of the option may come behind its value
            reason = f"{reason[:300]} ... {reason[-200:]}"
        raise ValueError(f"{printed(reason, 600)} ({prog} --help lists the options)") from None


def first_paragraph(box: str) -> str:
    """What tyro says is wrong: it draws a box, with a title, then paragraphs between rules; the first one says it.

    The title is part of the box's border, or a paragraph of its own where the terminal has no lines to draw.
    """
    lines = [line.strip("│ ") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    paragraphs = [" ".join(group) for rule, group in itertools.groupby(lines, _is_rule) if not rule]
    return " ".join((paragraphs[1] if "╭" not in box and len(paragraphs) > 1 else paragraphs[0]).split())


def _is_rule(line: str) -> bool:
    return bool(line) and not set(line) - set("─-")


def tell(name: str, message: str) -> None:
    """Prints one line on stderr. Where nobody reads it any more nothing is printed from here on."""
    try:
        print(f"{name}: {one_line(message)}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = Nowhere()


def fail(name: str, message: str, code: int) -> int:
    """Tells an error; returns the code."""
    tell(name, f"error: {message}")
    return code


def end(code: int) -> int:
    """What a program does last: a closed pipe on stdout is no error."""
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would complain about it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


class Nowhere(io.TextIOBase):
    """A stream that goes nowhere."""

    def write(self, text: str) -> int:
        return len(text)
