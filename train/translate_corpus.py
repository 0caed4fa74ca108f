"""The pairs that a Transformer is trained on, and those that it is judged by."""

from collections.abc import Sequence
from typing import NamedTuple

from train.data import cldr_pairs
from train.data.fingerprint import fingerprint, fingerprint_of
from train.data.parallel import Pair, hold_out, read_pairs
from train.terminal import left_out


class Corpus(NamedTuple):
    """Training and held-out pairs, what to say about them, and the fingerprint of what they were read from."""

    pairs: list[Pair]
    held_out: list[Pair]
    notes: list[tuple[str, str]]
    fingerprint: dict[str, str]


def load_corpus(data: Sequence[str], eval_data: Sequence[str], count: int) -> Corpus:
    """Reads --data, and --eval.data or a part of --data, `count` pairs, that is held out; the embedded pairs without.

    Raises:
        InputError: as `read_pairs` and `hold_out`.
    """
    if not data:
        pairs, held_out = cldr_pairs.cldr_pairs()
        notes = [("data", f"{cldr_pairs.NAME}: {len(pairs):,} pairs"), ("held out", f"{len(held_out):,} pairs")]
        return Corpus(pairs, held_out, notes, fingerprint_of(cldr_pairs.NAME, [*pairs, *held_out]))
    pairs = read_pairs(data)
    digest = fingerprint(data)
    notes = [("data", f"{', '.join(data)}: {len(pairs):,} pairs")]
    if eval_data:
        held_out = read_pairs(eval_data, option="--eval.data", split="validation")
        digest |= fingerprint(eval_data, option="--eval.data", split="validation")
        notes.append(("held out", f"{', '.join(eval_data)}: {len(held_out):,} pairs"))
        return Corpus(pairs, held_out, notes, digest)
    rest, held_out = hold_out(pairs, count)
    also = len(pairs) - len(rest) - len(held_out)
    notes.append(("held out", f"{len(held_out):,} pairs"))
    notes += left_out("", {"other pairs of held-out sources": also})
    return Corpus(rest, held_out, notes, digest)
