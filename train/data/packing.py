"""Pairs of sentences packed into rows: several short ones beside each other, so that hardly anything is padding."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from train.data.batches import Batch
from train.errors import InputError

# Lengths of rows are multiples of it and, from longest sentences of 256 tokens on, of greater powers of 2 ...
_UNIT = 4
# ... where there is a choice, and at most so many times the longest sentence.
_LONGEST = 8
# In rows of so many tokens attention is as dear as everything else. It is 6 times the width or so of a model; this is
# for those of some hundreds.
_DEAR = 2000
# What a batch that uses a share of the tokens that it may have counts for: the share to this power.
_FULLNESS = 0.25
# Lengths that could not make a token cheaper by 1 % are not tried.
_WORTH = 0.99
# Lengths are told apart to so many binary digits: exactly up to 64, to 3 % above. It bounds the work of packing.
_DIGITS = 6


class Rows(NamedTuple):
    """Which lengths stand beside each other in rows of so many source and target tokens.

    Attributes:
        cells: int64 [slots], in the order of the rows: the number of the cell, that is of a pair of lengths, from which
            each slot takes an example.
        counts: int64 [rows], the number of slots of each row.
    """

    source_length: int
    target_length: int
    cells: np.ndarray
    counts: np.ndarray


class PackedBatches:
    """Random access to batches of packed pairs of at most `tokens_per_batch` target tokens each, padding included.

    `batches[k]` is a dict of int32 [B, S] and [B, T], named as `Transformer.__call__` names them: `input_ids` (source),
    `segment_ids` and `position_ids`; `labels` (target), `decoder_segment_ids` and `decoder_position_ids`. Segments are
    numbered from 1 in each row, the same on both sides; padding is in segment 0 at position 0. B, S and T are the same
    in all batches. They follow from the lengths of the data, see `choose_rows`; B is a multiple of `multiple`.

    Which lengths share a row is the same in all epochs. An epoch deals the examples of like length out to these places,
    and permutes the rows, by (seed, epoch). Rows without an example fill the last batch up, and are permuted like all
    others: every example is in each epoch once, n = `batches_per_epoch` is constant, and step k is batch k % n of
    epoch k // n.

    Args:
        sources, targets: token ids of each example, EOS included.
        max_length: examples that are longer on a side are left out.
        steps: the number of batches, over as many epochs as it takes.
        multiple: what B is a multiple of: the number of shards of the batch, itself a multiple of `process_count`.
        process_index, process_count: `batches[k]` is this slice of the rows of the global batch.
        option: what to blame for the examples in messages.

    Attributes:
        batches_per_epoch: the n above.
        dropped: how many examples are too long.
        shape: the (B, S, T) of global batches.
        padding: the shares of source and of target positions that hold no token.

    Raises:
        InputError: no example is short enough, or `multiple` rows of the longest target have more than
            `tokens_per_batch` tokens.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        tokens_per_batch: int,
        max_length: int,
        pad_id: int = 0,
        seed: int,
        steps: int,
        multiple: int = 1,
        process_index: int = 0,
        process_count: int = 1,
        option: str = "--data",
    ):
        if multiple % process_count:
            raise ValueError(f"multiple is {multiple}, but must be a multiple of the {process_count} processes")
        self._sides = _Ragged(sources), _Ragged(targets)
        self._pad_id, self._seed, self._steps = pad_id, seed, steps
        self._process_index, self._process_count = process_index, process_count
        lengths_N2 = np.stack([side.lengths for side in self._sides], axis=1)
        self._kept = np.flatnonzero(lengths_N2.max(1, initial=0) <= max_length)
        self.dropped = len(lengths_N2) - len(self._kept)
        if not len(self._kept):
            raise InputError(
                f"{option}: none of {len(lengths_N2)} pairs has at most {max_length} tokens a side; give shorter "
                f"pairs, or raise --max-length"
            )
        lengths_N2 = lengths_N2[self._kept]
        widest = int(lengths_N2[:, 1].max())
        if multiple * widest > tokens_per_batch:
            raise InputError(
                f"--batch-size {tokens_per_batch} does not hold {multiple} rows of {widest} tokens, as {option} has "
                f"them; give {multiple * widest} or more, or lower --max-length"
            )
        cells_C2, self._cell, count_C = _count(lengths_N2)
        rows = choose_rows(lengths_N2, cells_C2, count_C, tokens_per_batch, multiple)
        self.batches_per_epoch, size = _split(len(rows.counts), tokens_per_batch // rows.target_length, multiple)
        self.shape = size, rows.source_length, rows.target_length
        positions = self.batches_per_epoch * size * np.array(self.shape[1:])
        self.padding: tuple[float, float] = tuple((1 - lengths_N2.sum(0) / positions).tolist())
        self._counts = np.zeros(self.batches_per_epoch * size, np.int64)
        self._counts[: len(rows.counts)] = rows.counts
        self._starts = np.cumsum(self._counts) - self._counts
        self._slots_by_cell = np.argsort(rows.cells, kind="stable")
        self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self._steps:
            raise IndexError(f"batch {index} of {self._steps}")
        epoch, position = divmod(index, self.batches_per_epoch)
        order, examples = self._plan(epoch)
        local = self.shape[0] // self._process_count
        first = position * self.shape[0] + self._process_index * local
        rows = order[first : first + local]
        counts = self._counts[rows]
        chosen = examples[_ranges(self._starts[rows], counts)]
        batch: Batch = {}
        for side, length, ids, prefix in zip(
            self._sides, self.shape[1:], ("input_ids", "labels"), ("", "decoder_"), strict=True
        ):
            packed = side.packed(chosen, counts, length, self._pad_id)
            names = (ids, f"{prefix}segment_ids", f"{prefix}position_ids")
            batch |= dict(zip(names, packed, strict=True))
        return batch

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of rows, and the example in each slot; the two latest plans are kept."""
        plan = self._plans.get(epoch)
        if plan is None:
            rng = np.random.default_rng([self._seed, epoch])
            dealt = rng.permutation(len(self._kept))
            examples = np.empty_like(dealt)
            examples[self._slots_by_cell] = self._kept[dealt[np.argsort(self._cell[dealt], kind="stable")]]
            plan = rng.permutation(len(self._counts)), examples
            # A new dict, since several threads may read: they prefetch across the end of an epoch.
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: plan}
        return plan


class _Ragged:
    """Lists of token ids in one array."""

    def __init__(self, rows: Sequence[Sequence[int]]):
        self.lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._tokens = np.fromiter(chain.from_iterable(rows), np.int32, int(self.lengths.sum()))

    def packed(self, chosen: np.ndarray, counts: np.ndarray, length: int, pad_id: int) -> tuple[np.ndarray, ...]:
        """Token ids, segments and positions, [rows, length] each, of the examples `chosen`, `counts` of them a row."""
        sizes = self.lengths[chosen]
        ends = np.cumsum(sizes)
        begin_of_row = np.append(0, ends)[np.cumsum(counts) - counts]
        rows = np.repeat(np.arange(len(counts)), counts)
        places = _ranges(ends - sizes + (np.arange(len(counts)) * length - begin_of_row)[rows], sizes)
        ids, segments, positions = (np.full(len(counts) * length, fill, np.int32) for fill in (pad_id, 0, 0))
        ids[places] = self._tokens[_ranges(self._starts[chosen], sizes)]
        segments[places] = np.repeat(_ranges(np.ones_like(counts), counts), sizes)
        positions[places] = _ranges(np.zeros_like(sizes), sizes)
        return tuple(flat.reshape(len(counts), length) for flat in (ids, segments, positions))


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """start, start + 1, ... for each start, `size` numbers of each, one after another."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


# --- which lengths share a row -----------------------------------------------------------------------------------


def choose_rows(
    lengths_N2: np.ndarray, cells_C2: np.ndarray, count_C: np.ndarray, tokens_per_batch: int, multiple: int
) -> Rows:
    """Packs examples into rows of the lengths in which a token costs least; `pack` describes the cells.

    Padding makes a token dearer, and so does attention in longer rows. The target's rows are at least as long as the
    longest target, and the source's, which are at least as long as the longest source, in proportion to them, so that
    both are full at the same time. Lengths that `multiple` rows of do not fill a batch with well are avoided.
    """
    totals_2, longest_2 = lengths_N2.sum(0), lengths_N2.max(0).tolist()
    most = tokens_per_batch // multiple
    last = max(longest_2[1], min(most, _LONGEST * max(longest_2)))
    unit = max(_UNIT, 2 ** (max(longest_2).bit_length() - 6))
    shapes: list[tuple[float, float, int, int]] = []  # what all costs if no row has a gap, the price of a position, ...
    for target in range(min(_up(longest_2[1], unit), most), last + 1, unit):
        even = target * totals_2[0] / totals_2[1]
        for source in {max(longest_2[0], _up(even, unit) - unit), _up(max(longest_2[0], even), unit)}:
            price = (1 + (source + target) / 2 / _DEAR) / (most // target * target / most) ** _FULLNESS
            rows = max(totals_2[0] / source, totals_2[1] / target)
            shapes.append((price * rows * (source + target), price, source, target))
    best, least = None, np.inf
    for bound, price, source, target in sorted(shapes):
        if bound >= least * _WORTH:
            break
        room_2 = np.array([source, target])
        cells, counts = pack(np.minimum(cells_C2, room_2), count_C, room_2)
        if (cost := price * len(counts) * (source + target)) < least:
            best, least = Rows(source, target, cells, counts), cost
    assert best is not None  # the first one costs less than infinity
    return best


def pack(cells_C2: np.ndarray, count_C: np.ndarray, room_2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packs pairs of lengths into rows that have room for `room_2` source and target tokens.

    A row takes the largest pair that is left, and then, while one fits, the one that is nearest in both lengths to the
    room that the row still has. What that makes depends only on which pairs of lengths are left: such a row is made as
    often as there are lengths for it, so that the work grows with the number of different pairs of lengths alone.

    Args:
        cells_C2: different (source, target) lengths, none beyond the room.
        count_C: how many examples have them.

    Returns:
        `Rows.cells` and `Rows.counts`.
    """
    order = np.argsort(-(cells_C2 / room_2).sum(1), kind="stable")
    source, target = (np.ascontiguousarray(side) for side in cells_C2[order].T)
    left = count_C[order]
    weight = float(room_2[0] / room_2[1]) ** 2  # of a square of target tokens, in squares of source tokens
    patterns, times = [], []
    first = 0
    while first < len(left):
        pattern: list[int] = []
        source_room, target_room = room_2.tolist()
        fits = np.array([first])
        while len(fits):
            distance = (source_room - source[fits]) ** 2 + weight * (target_room - target[fits]) ** 2
            chosen = int(fits[np.argmin(distance)])
            pattern.append(chosen)
            left[chosen] -= 1
            source_room -= int(source[chosen])
            target_room -= int(target[chosen])
            fitting = (source[first:] <= source_room) & (target[first:] <= target_room) & (left[first:] > 0)
            fits = first + np.flatnonzero(fitting)
        used, often = np.unique(pattern, return_counts=True)
        more = int(np.min(left[used] // often))
        left[used] -= more * often
        patterns.append(order[pattern])
        times.append(more + 1)
        while first < len(left) and not left[first]:
            first += 1
    cells = np.concatenate([np.tile(pattern, n) for pattern, n in zip(patterns, times, strict=True)])
    return cells, np.repeat([len(pattern) for pattern in patterns], times)


def _split(rows: int, most: int, multiple: int) -> tuple[int, int]:
    """The number of batches and of rows in each: about `most`, such that few rows without an example fill them up."""
    largest = min(most // multiple, -(-rows // multiple)) * multiple

    def cost(size: int) -> float:
        return -(-rows // size) * size / (size / largest) ** _FULLNESS

    size = min(range(largest, largest // 2, -multiple), key=cost)
    return -(-rows // size), size


def _count(lengths_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different pairs of lengths, rounded up to a few binary digits, which of them each is, and how many are."""
    step_N2 = 2 ** np.maximum(np.ceil(np.log2(lengths_N2)).astype(np.int64) - _DIGITS, 0)
    source_N, target_N = (-(-lengths_N2 // step_N2) * step_N2).T
    base = int(target_N.max()) + 1
    keys_C, cell_N, count_C = np.unique(source_N * base + target_N, return_inverse=True, return_counts=True)
    return np.stack(np.divmod(keys_C, base), axis=1), cell_N.astype(np.uint32), count_C


def _up(length: float, unit: int) -> int:
    return int(-(-length // unit)) * unit
