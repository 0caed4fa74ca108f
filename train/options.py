"""The options of a job: each number's range is declared beside its type, and all are checked in one place."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, get_type_hints

from train.errors import InputError
from transformer_jax.checks import LARGEST, NotNegative, Range, Share, check_value, shown

Count = Annotated[int, Range(1, LARGEST)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, open_low=True)]
__all__ = ["LARGEST", "Count", "NotNegative", "Positive", "Range", "Seed", "Share", "check_options", "options"]


def check_options(config: Any, prefix: str = "--") -> None:
    """Checks each option of a dataclass, and of those inside it, against its declared type and range.

    Raises:
        InputError: one does not fit; it names the option, its value and what would be right.
    """
    for option, value, hint in options(config, prefix):
        try:
            check_value(option, value, hint)
        except ValueError as error:
            raise InputError(str(error)) from error


def options(config: Any, prefix: str = "--") -> Iterator[tuple[str, Any, Any]]:
    """(name on the command line, value, declared type) of each option."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{option}.")
        else:
            yield option, value, hints[field.name]


def refuse_idle(config: Any, names: tuple[str, ...], because: str, prefix: str = "--") -> None:
    """Raises InputError where one of the options, which have no meaning in this run, is not its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            option = f"{prefix}{name.replace('_', '-')}"
            raise InputError(f"{option} {shown(getattr(config, name))} has no meaning {because}; leave it out")
