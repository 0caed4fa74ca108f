"""What everything that takes many texts shares: how it speaks of one of them, and how it shows how far it is."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from transformer_jax.checks import listed, require, shown

# Shorter lists have no progress bar.
MANY_BATCHES = 32


class TextError(ValueError):
    """One of several texts cannot be answered.

    Attributes:
        index: its place in the list.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, index: int, reason: str) -> None:
        super().__init__(f"{name}[{index}] {reason}")
        self.index, self.reason = index, reason


class TextsCut(UserWarning):
    """Texts have more tokens than the model reads.

    Attributes:
        longest: how many it reads.
        indices: places of the texts in the list.
    """

    def __init__(self, longest: int, indices: list[int], name: str = "texts") -> None:
        super().__init__(self.line(longest, name, indices))
        self.longest, self.indices = longest, indices

    @staticmethod
    def line(longest: int, name: str, numbers: Sequence[int]) -> str:
        """The message, for texts under another name and numbers."""
        these = listed([str(number) for number in numbers])
        return f"of a text the first {longest} tokens are read: the end of {name} {these} is left out"


def checked_texts(name: str, texts: Sequence[str]) -> Iterator[str]:
    """The texts, each of them checked.

    Raises:
        ValueError: no list; a `TextError` for what is no string, or not Unicode.
    """
    several = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping)
    require(several, f"give a list of {name}, not {shown(texts)}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TextError(name, i, f"must be a string, not {shown(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(name, i, f"is not Unicode: {error}") from error
        yield text


@contextlib.contextmanager
def progress(texts: int, batches: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal and there is much to do."""
    console = Console(stderr=True)
    if batches < MANY_BATCHES or not console.is_terminal:
        yield lambda count: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=texts)
        yield lambda count: bar.advance(task, count)
