"""What is refused, and how: types and ranges of numbers, ids, and values wherever they are at hand."""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds: how everything here checks itself."""
    if not condition:
        raise ValueError(message)


def listed(names: list[str], count: int = 5) -> str:
    """The first few of many names."""
    return ", ".join(printed(name, 100) for name in names[:count]) + (
        f" and {len(names) - count} more" if len(names) > count else ""
    )


def printed(text: object, longest: int = 500) -> str:
    """A name or a reason as a message can hold it: as it is, but quoted and cut where it would break the line."""
    words = " ".join(str(text).split(" "))
    return words if words.isprintable() and 0 < len(words) <= longest else shown(words, longest)


def one_line(text: str) -> str:
    """A message as one line that every terminal can show: the names in it may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def shown(value: Any, longest: int = 80) -> str:
    """A value on one short line, whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python prints no integer of more than 4,300 digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    except RecursionError:
        text = f"a {type(value).__name__}, nested too deeply"
    return text if len(text) <= longest else f"{text[:longest]}..."


# --- fields ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, without the ends that are open, and with what is in `also`."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the number is in the range; nan and infinity never are."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return value in self.also or (above and below and abs(value) != math.inf)

    def __str__(self) -> str:
        words = [f"{'above' if self.open_low else 'from'} {self.low}"]
        if self.high < math.inf:
            words.append(f"{'below' if self.open_high else 'to'} {self.high}")
        return " ".join([*words, *(f"or {value}" for value in self.also)])


LARGEST = 2**31 - 1  # sizes and ids are int32 on devices
Size = Annotated[int, Range(1, LARGEST)]
Layers = Annotated[int, Range(1, 10_000)]
# Whoever asks for more means something else, and gets gigabytes.
Width = Annotated[int, Range(1, 2**20)]
Positions = Annotated[int, Range(1, 2**20)]
Id = Annotated[int, Range(0, LARGEST)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1, open_high=True)]


def check_fields(config: Any) -> None:
    """Checks every field of a dataclass or NamedTuple against its declared type and range.

    Looked at are int, float, bool, str, None, Literal, unions of these and tuples of any length, and `Annotated` with
    a `Range`; fields of other types pass. A bool is no number, and nan, infinity and what overflows float32 are in no
    range.

    Raises:
        ValueError: a field does not fit; it names the field, what would be right, and the value.
    """
    hints = get_type_hints(type(config), include_extras=True)
    names = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else config._fields
    for name in names:
        check_value(name, getattr(config, name), hints[name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Checks one value against a type and range, as `check_fields` does."""
    if not _fits(value, hint):  # a message about a value that fits could take long: it may be a model's parameters
        raise ValueError(f"{name} must be {_in_words(hint)}, not {shown(value)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [extra for extra in args[1:] if isinstance(extra, Range)]
        return _fits(value, args[0]) and (value is None or all(r.holds(value) for r in ranges))
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple and args[1:] == (...,):
        return isinstance(value, tuple) and all(_fits(each, args[0]) for each in value)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= float(np.finfo(np.float32).max)
    return isinstance(value, hint) if hint in (bool, str, types.NoneType) else True


def _in_words(hint: Any) -> str:
    args = get_args(hint)
    if get_origin(hint) is Annotated:
        return " ".join([_in_words(args[0]), *(str(extra) for extra in args[1:] if isinstance(extra, Range))])
    if get_origin(hint) is Literal:
        return " or ".join([", ".join(map(repr, args[:-1])), repr(args[-1])] if len(args) > 1 else [repr(args[0])])
    if get_origin(hint) is Callable:
        return "a function"
    if get_origin(hint) is tuple:
        return f"a tuple, each {_in_words(args[0])}"
    if args:
        return " or ".join(map(_in_words, args))
    words = {int: "an integer", float: "a number", bool: "True or False", str: "a string", types.NoneType: "None"}
    return words.get(hint, str(hint))


# --- arrays ------------------------------------------------------------------------------------------------------


def concrete(x: Any) -> np.ndarray | None:
    """The values of an array, or None where this process cannot see them: under `jit`, or on other hosts."""
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)


def as_array(name: str, x: Any) -> Any:
    """An array as it is, anything else (a list of lists) as a NumPy array.

    Raises:
        ValueError: it is neither numbers nor booleans, or its rows differ in length.
    """
    if not isinstance(x, jax.Array | np.ndarray):
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{name} is no array: rows of one length are needed, not {shown(x)}") from error
    numeric = x.dtype == bool or jnp.issubdtype(x.dtype, jnp.number)
    require(numeric, f"{name} must be an array of numbers, not of {x.dtype}")
    return x


def as_ids(name: str, ids: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Ids [B, L] as an array of integers; lists of lists are converted. Their values are not looked at.

    Args:
        shape: what [B, L] must be, such as that of the input_ids which these ids go with.

    Raises:
        ValueError: another rank, dtype or shape, rows of unequal length, or nothing in them.
    """
    ids = as_array(name, ids)
    size = tuple(ids.shape)
    require(len(size) == 2 and 0 not in size, f"{name} must be [rows, tokens] with at least one of each, not {size}")
    require(jnp.issubdtype(ids.dtype, jnp.integer), f"{name} must be integers, not {ids.dtype}")
    require(shape is None or size == tuple(shape or ()), f"{name} must have the shape {shape}, not {size}")
    return ids


def check_ids(name: str, ids: Any, size: int, table: str) -> None:
    """Checks that ids are integers below `size`, the rows of `table`; their values only where they are at hand.

    Raises:
        ValueError: another dtype, or ids below 0 or from `size` up; it says how many, and the first one.
    """
    ids = as_array(name, ids)
    require(jnp.issubdtype(ids.dtype, jnp.integer), f"{name} must be integers, not {ids.dtype}")
    values = concrete(ids)
    if values is None:
        return
    wrong = values[(values < 0) | (values >= size)]
    require(
        wrong.size == 0,
        f"{name} must lie between 0 and {size - 1} ({table}): {wrong.size} of {values.size} do not, such as "
        f"{wrong[0] if wrong.size else ''}",
    )


def check_finite(tensors: Mapping[str, Any], where: str) -> None:
    """Checks that arrays by name hold no nan and no infinity.

    Raises:
        ValueError: some do; it names them.
    """
    wrong = sorted(name for name, values in tensors.items() if not np.isfinite(values).all())
    require(not wrong, f"{where}: not finite (nan or infinity) in {len(wrong)} tensors: {listed(wrong)}")
