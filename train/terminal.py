"""What a job prints: lines and tables, on process 0, as long as somebody reads them."""

import io
import sys
import textwrap
from collections.abc import Sequence

import jax

from transformer_jax.command import Nowhere, tell


def say(text: str = "") -> None:
    """Prints a line. Where nobody reads it any more (a closed pipe, a full disk) nothing is printed from here on."""
    if jax.process_index():
        return
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = Nowhere()


def warn(text: str) -> None:
    """Prints a line on stderr, likewise."""
    tell("train", text)


def say_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints what belongs to each name, one a line; what is long is broken."""
    say(f"\n{title}")
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        first, other = f"  {name:<{width}}  ", " " * (width + 4)
        say("\n".join(textwrap.wrap(text, 116, initial_indent=first, subsequent_indent=other)))
    say()


def left_out(prefix: str, counts: dict[str, int]) -> list[tuple[str, str]]:
    """Table rows for what was read and is not used."""
    return [(f"{prefix}left out", f"{count:,} {reason}") for reason, count in counts.items() if count]


def open_streams() -> None:
    """Gives a program that was started without stdout or stderr (`>&-`) ones that go nowhere.

    Text that a stream's encoding lacks is printed with escapes, not an error.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
