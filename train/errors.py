"""The errors that end a job with one line, and the exit code of each kind."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Input or an option that a job cannot work with.

    The message is one line: what was wrong, where (option, or file with line or byte offset), the value that
    was met and what would be right. `python -m train` prints it and ends with exit code 2.
    """

    exit_code = 2


class RunError(RuntimeError):
    """A run that was begun and cannot go on. The message is one line, which says what is left and how to go on."""

    exit_code = 1


class Diverged(RunError):
    """The loss or its gradient is not finite, too many steps in a row."""

    exit_code = 3


class StorageError(RunError):
    """The run folder cannot be written any more: a full disk, a folder that is gone."""

    exit_code = 4


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turns the ValueErrors of the libraries into an InputError that names an option, or a file, first."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{what}: {error}") from error
