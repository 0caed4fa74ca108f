"""The pairs that a Transformer is trained on, and those that it is judged by."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from train.data import cldr_pairs
from train.data.fingerprint import fingerprint, fingerprint_of
from train.data.mixtures import (
    Part,
    by_direction,
    hold_out,
    in_turn,
    is_back_translated,
    read_parts,
    tags_of,
    without,
)
from train.data.parallel import Pair
from train.errors import InputError
from train.terminal import left_out


class Corpus(NamedTuple):
    """Training and held-out pairs, what to say about them, and the fingerprint of what they were read from.

    Attributes:
        directions: such as en-de, of each held-out pair; "" where nothing names languages.
        tags: what sources begin with, and is one token.
    """

    pairs: list[Pair]
    held_out: list[Pair]
    directions: list[str]
    tags: list[str]
    notes: list[tuple[str, str]]
    fingerprint: dict[str, str]


def load_corpus(data: Sequence[str], eval_data: Sequence[str], count: int, both_directions: bool = False) -> Corpus:
    """Reads --data, and --eval.data or a part of --data, `count` pairs, that is held out; the embedded pairs without.

    Raises:
        InputError: as `read_parts`, `hold_out` and `tags_of`; or one of the two names languages and the other does not,
            or neither does where both directions are asked for.
    """
    if not data:
        pairs, held_out = cldr_pairs.cldr_pairs()
        notes = [("data", f"{cldr_pairs.NAME}: {len(pairs):,} pairs"), ("held out", f"{len(held_out):,} pairs")]
        digest = fingerprint_of(cldr_pairs.NAME, [*pairs, *held_out])
        return Corpus(pairs, held_out, [""] * len(held_out), [], notes, digest)
    parts = read_parts(data)
    if both_directions and parts[0].languages is None:
        raise InputError(f"--both-directions: which ones? Name the languages of --data: en-de={data[0]}")
    digest = fingerprint([place for part in parts for place in part.places])
    notes = [("data", _of(part)) for part in parts]
    if eval_data:
        held_parts = read_parts(eval_data, option="--eval.data", split="validation")
        if (held_parts[0].languages is None) != (parts[0].languages is None):
            raise InputError(
                f"--eval.data {' '.join(eval_data)}: languages are named there or in --data, not in both: write "
                "LANGUAGE-LANGUAGE= in front of all entries or of none"
            )
        places = [place for part in held_parts for place in part.places]
        digest |= fingerprint(places, option="--eval.data", split="validation")
        rest = parts
        told = [("held out", _of(part)) for part in held_parts]
        known = _count(parts) - _count(without(parts, held_parts, both_directions))
        if known:
            told.append(
                ("held out", f"{known:,} training pairs hold a held-out source, or its translation: scores rise")
            )
    else:
        rest, held_parts = hold_out(parts, count, both_directions)
        told = [("held out", _of(part)) for part in held_parts]
        also = _count(parts) - _count(rest) - _count(held_parts)
        told += left_out("", {"other pairs of held-out sources": also})
    pairs = list(chain.from_iterable(by_direction(rest, both_directions).values()))
    held_out, directions = in_turn(by_direction(held_parts, both_directions))
    return Corpus(pairs, held_out, directions, tags_of(pairs), [*notes, *_more(pairs, directions), *told], digest)


def _count(parts: Sequence[Part]) -> int:
    return sum(len(part.pairs) for part in parts)


def _of(part: Part) -> str:
    """A part's places and direction, and how many pairs."""
    name = " ".join(filter(None, (part.direction, ", ".join(part.places))))
    return f"{name}: {len(part.pairs):,} pairs" if name else f"{len(part.pairs):,} pairs"


def _more(pairs: Sequence[Pair], directions: Sequence[str]) -> list[tuple[str, str]]:
    """What becomes of several directions, and of what was translated back."""
    rows = []
    marked = sum(is_back_translated(source) for source, _ in pairs)
    if marked:
        rows.append(("data", f"{marked:,} pairs with marked sources, which were translated back"))
    if len(counts := Counter(directions)) > 1:
        said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        rows.append(("directions", f"{len(pairs):,} training pairs; held out: {said}"))
    return rows
