"""What everything is checked with: types and ranges of fields, ids, values in messages."""

import dataclasses
import math
from typing import Annotated, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.checks import Range, Share, Size, as_ids, check_fields, check_ids, check_value, shown
from transformer_jax.layers import ACTIVATIONS, Activation
from transformer_jax.stack import REMAT_POLICIES, Remat

HUGE = 10**5000  # Python refuses to print it
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


@dataclasses.dataclass(frozen=True)
class Options:
    size: Size = 3
    optional: Size | None = None
    share: Share = 0.5
    plain: float = 0.0
    flag: bool = False
    word: Literal["a", "b"] = "a"
    mixed: bool | Literal["never"] = False
    text: str = ""
    sizes: tuple[Size, ...] = ()
    table: dict[str, int] | None = None
    also: Annotated[int, Range(1, 8, also=(-1,))] = 1

    def __post_init__(self):
        check_fields(self)


class Options2(NamedTuple):
    size: Size


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("size", [0, -1, 2**31, HUGE, True, 2.0, "3", None, [3], math.nan, np.float32(3), DEEP]),
        ("optional", [0, True, 2.0, "3"]),
        ("share", [1, 1.0, -0.1, math.nan, math.inf, "0.5", None, False, HUGE, [0.5]]),
        ("plain", [math.nan, math.inf, -math.inf, 1e39, HUGE, None, True, "0", {}]),
        ("flag", [0, 1, None, "yes"]),
        ("word", ["c", "", None, 1, ["a"], {"a": 1}]),
        ("mixed", [0, 1, "ever", None, ["never"]]),
        ("text", [b"", None, 0]),
        ("also", [0, -2, 9, True, None]),
        ("sizes", [3, [3], (0,), (1, "2"), (HUGE,), None]),
    ],
)
def test_a_field_of_another_type_or_out_of_range_is_named_with_its_value(field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{field} must be .*, not ") as caught:
            Options(**{field: value})
        assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_fields_of_the_right_type_and_range_pass():
    for fields in (
        {"size": 2**31 - 1, "optional": 1, "share": 0, "plain": -3, "flag": True, "word": "b", "sizes": (1, 2)},
        {"share": 0.999, "plain": 3e38, "mixed": True, "text": "x", "table": {"not": "looked at"}, "also": -1},
    ):
        Options(**fields)
    check_fields(Options2(4))
    with pytest.raises(ValueError, match="size must be an integer from 1 to 2147483647, not 0"):
        check_fields(Options2(0))


def test_ranges_say_what_they_hold():
    assert str(Range(0, 1, open_high=True)) == "from 0 below 1"
    assert str(Range(1, 8, also=(-1,))) == "from 1 to 8 or -1"
    assert str(Range(0, open_low=True)) == "above 0"
    assert not Range(0).holds(math.inf) and not Range(0).holds(math.nan) and Range(0).holds(HUGE)
    with pytest.raises(ValueError, match="rate must be a number above 0, not 0"):
        check_value("rate", 0, Annotated[float, Range(0, open_low=True)])


def test_values_are_shown_on_a_short_line():
    assert shown("a") == "'a'" and shown(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"
    assert shown(HUGE) == "an integer of 16610 bits" and shown([HUGE]) == "a list"
    assert shown(DEEP) == "a list, nested too deeply"
    assert len(shown("x" * 1000)) < 100


def test_the_names_of_choices_are_those_of_their_tables():
    assert get_args(Activation) == tuple(ACTIVATIONS) and get_args(Remat) == tuple(REMAT_POLICIES)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "must be .rows, tokens."),
        ([[]], "must be .rows, tokens."),
        ([1, 2], r"not \(2,\)"),
        (3, r"not \(\)"),
        (np.zeros((0, 4), int), r"not \(0, 4\)"),
        (np.zeros((2, 3, 1), int), r"not \(2, 3, 1\)"),
        ([[1, 2], [3]], "rows of one length"),
        ([[1.0, 2.0]], "integers, not float64"),
        (np.ones((1, 2), bool), "integers, not bool"),
        ([["a"]], "numbers, not of <U1"),
        ("ab", "numbers, not of <U2"),
        (None, "numbers, not of object"),
        ([[10**30]], "numbers, not of object"),
    ],
)
def test_ids_are_integers_in_rows(ids, message):
    with pytest.raises(ValueError, match=f"input_ids .*{message}"):
        as_ids("input_ids", ids)


def test_ids_of_the_right_kind_pass():
    assert as_ids("ids", [[1, 2], [3, 4]]).shape == (2, 2)
    assert jax.jit(lambda x: as_ids("ids", x, (1, 2)))(jnp.ones((1, 2), jnp.uint8)).dtype == jnp.uint8
    with pytest.raises(ValueError, match=r"ids must have the shape \(1, 2\), not \(2, 1\)"):
        as_ids("ids", [[1], [2]], (1, 2))


def test_ids_are_checked_against_their_table_where_they_are_at_hand():
    for ids in ([0, 9], np.arange(10, dtype=np.uint8), jnp.arange(10)):
        check_ids("ids", ids, 10, "a table")
    for ids, wrong in (
        ([0, 10], "1 of 2 do not, such as 10"),
        (jnp.array([[-1, 3]]), "such as -1"),
        ([2**40], "1 of 1"),
    ):
        with pytest.raises(ValueError, match=f"ids must lie between 0 and 9 .a table.: {'.*' + wrong}"):
            check_ids("ids", ids, 10, "a table")
    with pytest.raises(ValueError, match="integers, not float"):
        check_ids("ids", [0.5], 10, "a table")
    jax.jit(lambda ids: check_ids("ids", ids, 10, "a table"))(jnp.array([99]))
