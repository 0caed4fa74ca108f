"""From examples to batches: batch k is a pure function of (seed, k), on any number of hosts."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from train.errors import InputError

Batch = dict[str, np.ndarray]


class Examples(Protocol):
    """A source with random access: each example is a dict of arrays, the same keys and shapes in all."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Batches(Protocol):
    """What `iterate` reads: `[k]` is this host's slice of batch k, `len` the number of steps."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


class ExampleBatches:
    """Random access to batches of shuffled examples, each epoch in another order.

    `batches[k]` stacks the rows [p * B / P, (p + 1) * B / P) of the global batch k, with B = `batch_size`, p =
    `process_index`, P = `process_count`; put together in the order of the hosts they are the same for every P. A
    batch may run from one epoch into the next, so none is short. Any k costs the same.

    Raises:
        InputError: there are no examples, or `batch_size` is no positive multiple of `process_count`.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        seed: int,
        steps: int,
        process_index: int = 0,
        process_count: int = 1,
        option: str = "--data",
    ):
        if not len(examples):
            raise InputError(f"{option}: there are no examples in it")
        if batch_size < 1 or batch_size % process_count:
            raise InputError(f"--batch-size: {batch_size} is no positive multiple of the {process_count} host(s)")
        self._examples, self._seed, self._steps = examples, seed, steps
        self._batch_size, self._rows = batch_size, batch_size // process_count
        self._offset = process_index * self._rows

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> Batch:
        rows = [self._examples[int(member)] for member in self._members(index, self._offset, self._rows)]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def members(self, index: int) -> np.ndarray:
        """The examples that make up the global batch `index`, int64 [B].

        Raises IndexError where there is no such batch.
        """
        return self._members(index, 0, self._batch_size)

    def _members(self, index: int, offset: int, count: int) -> np.ndarray:
        if not 0 <= index < self._steps:
            raise IndexError(f"batch {index} of {self._steps}")
        first = index * self._batch_size + offset
        return np.array([self._shuffled(position) for position in range(first, first + count)])

    def _shuffled(self, position: int) -> int:
        """The example at a position in the endless sequence of epochs."""
        epoch, index = divmod(position, len(self._examples))
        return grain.experimental.index_shuffle(
            index, max_index=len(self._examples) - 1, seed=_epoch_seed(self._seed, epoch), rounds=4
        )


@lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    """32 bits for an epoch, such that epoch 1 of seed 0 is not epoch 0 of seed 1."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def iterate(batches: Batches | Sequence[Batch], start: int = 0, prefetch: int = 4) -> grain.DatasetIterator[Batch]:
    """Iterates over batches `start`, `start + 1`, ... while threads make the next `prefetch` ones (0: no threads).

    `get_state()` is a small dict for the checkpoint (`{"next_index": k}`), `set_state()` goes there at once: no
    batch on the way is made. Close it (`close()`) to stop the threads early.
    """
    options = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


# --- batches of about equal token counts ---------------------------------------------------------------------------


def bucket_lengths(lengths: Sequence[int], count: int = 4, multiple: int = 8, *, maximum: int) -> tuple[int, ...]:
    """The boundaries of at most `count` buckets that need the least padding for the `lengths`.

    They are multiples of `multiple` or `maximum`; none exceeds `maximum`, and lengths above it do not count.
    """
    kept = [length for length in lengths if length <= maximum]
    used = sorted({min(-(-length // multiple) * multiple, maximum) for length in kept})
    below = np.searchsorted(np.sort(kept), used, side="right")  # lengths up to each possible boundary
    # best[j]: total padded length, and boundaries, of all lengths up to used[j] in the buckets allowed so far
    best: list[tuple[int, tuple[int, ...]]] = [(int(n) * bound, (bound,)) for n, bound in zip(below, used, strict=True)]
    for _ in range(count - 1):
        longer = [
            [(best[i][0] + int(below[j] - below[i]) * used[j], (*best[i][1], used[j])) for i in range(j)]
            for j in range(len(used))
        ]
        best = [min([one, *more]) for one, more in zip(best, longer, strict=True)]
    return best[-1][1] if best else (maximum,)


class _Bucket(NamedTuple):
    length: int
    rows: int
    members: np.ndarray  # int64, indices of examples


class TokenBatches:
    """Random access to batches of pairs of about `tokens_per_batch` target tokens each, padding included.

    `batches[k]` is a dict of int32 [B, L]: `input_ids` (source) and `labels` (target), both padded to the length L of
    the bucket; consumers take `ids != pad_id` as the mask. Examples go by the longer of their sides into the first
    of the `lengths` that holds it. B is the largest multiple of `multiple` with B * L <= `tokens_per_batch`.

    An epoch permutes the examples of each bucket by (seed, epoch), cuts them into batches, leaves out what fills no
    batch, and permutes the batches. So n = `batches_per_epoch` is constant, and step k is batch k % n of epoch
    k // n. A bucket with too few examples for one batch gives them to the next longer one; the last takes as many rows
    as it has examples for and, with fewer than `multiple`, those of the next shorter one.

    Args:
        sources, targets: token ids of each example, EOS included.
        lengths: the buckets' padded lengths.
        steps: the number of batches, over as many epochs as it takes.
        multiple: what B is a multiple of: the number of shards of the batch, itself a multiple of `process_count`.
        process_index, process_count: `batches[k]` is this slice of the rows of the global batch.
        option: what to blame for the examples in messages.

    Attributes:
        batches_per_epoch: the n above.
        dropped: how many examples are longer than all `lengths`.
        left_over: how many examples, other ones in each epoch, fill no batch of it.
        shapes: the (B, L) of global batches that occur.

    Raises:
        InputError: no examples, or fewer than `multiple`, are short enough; or `multiple` rows of the longest bucket
            have more than `tokens_per_batch` tokens.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        tokens_per_batch: int,
        lengths: Sequence[int],
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
        self._sources, self._targets = _Ragged(sources), _Ragged(targets)
        self._pad_id, self._seed, self._steps = pad_id, seed, steps
        self._process_index, self._process_count = process_index, process_count
        longest = np.maximum(self._sources.lengths, self._targets.lengths)
        bounds = sorted(set(lengths))
        self.dropped = int(np.sum(longest > bounds[-1]))
        kept = len(longest) - self.dropped
        if kept < multiple:
            raise InputError(
                f"{option}: {kept} of {len(longest)} pairs have at most {bounds[-1]} tokens a "
                f"side, but a batch needs {multiple} or more; give more or shorter pairs, or raise --max-length"
            )
        widest = bounds[int(np.searchsorted(bounds, longest[longest <= bounds[-1]].max()))]
        if multiple * widest > tokens_per_batch:
            raise InputError(
                f"--batch-size {tokens_per_batch} does not hold {multiple} rows of {widest} tokens, as {option} has "
                f"them; give {multiple * widest} or more, or lower --max-length"
            )
        self._buckets = _fill_buckets(longest, bounds, tokens_per_batch, multiple)
        self.shapes = [(bucket.rows, bucket.length) for bucket in self._buckets]
        counts = [len(bucket.members) // bucket.rows for bucket in self._buckets]
        # Of batch j of an epoch, before the batches are permuted: its bucket, and which one of the bucket's it is.
        self._places = [(number, nth) for number, count in enumerate(counts) for nth in range(count)]
        self.batches_per_epoch = len(self._places)
        self.left_over = kept - sum(count * rows for count, (rows, _) in zip(counts, self.shapes, strict=True))
        self._plans: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self._steps:
            raise IndexError(f"batch {index} of {self._steps}")
        epoch, position = divmod(index, self.batches_per_epoch)
        order, members = self._plan(epoch)
        number, nth = self._places[order[position]]
        length, rows, _ = self._buckets[number]
        local = rows // self._process_count
        first = nth * rows + self._process_index * local
        chosen = members[number][first : first + local]
        return {
            "input_ids": self._sources.padded(chosen, length, self._pad_id),
            "labels": self._targets.padded(chosen, length, self._pad_id),
        }

    def _plan(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The epoch's order of batches and of each bucket's examples; the two latest plans are kept."""
        plan = self._plans.get(epoch)
        if plan is None:
            rng = np.random.default_rng([self._seed, epoch])
            members = [rng.permutation(bucket.members) for bucket in self._buckets]
            plan = rng.permutation(self.batches_per_epoch), members
            # A new dict, since several threads may read: they prefetch across the end of an epoch.
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: plan}
        return plan


class _Ragged:
    """Lists of token ids in one array."""

    def __init__(self, rows: Sequence[Sequence[int]]):
        self.lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        self._ends = np.cumsum(self.lengths)
        self._tokens = np.fromiter(chain.from_iterable(rows), np.int32, int(self.lengths.sum()))

    def padded(self, chosen: np.ndarray, length: int, pad_id: int) -> np.ndarray:
        padded_BL = np.full((len(chosen), length), pad_id, np.int32)
        for row, index in enumerate(chosen):
            end, size = self._ends[index], self.lengths[index]
            padded_BL[row, :size] = self._tokens[end - size : end]
        return padded_BL


def _fill_buckets(longest: np.ndarray, bounds: Sequence[int], tokens_per_batch: int, multiple: int) -> list[_Bucket]:
    """Buckets with at least one batch each, by the rule that `TokenBatches` describes."""
    bucket_of = np.searchsorted(bounds, longest)  # len(bounds): dropped
    members = [np.flatnonzero(bucket_of == number) for number in range(len(bounds))]
    filled = [(bound, ids) for bound, ids in zip(bounds, members, strict=True) if len(ids)]
    buckets: list[_Bucket] = []
    waiting = np.zeros(0, np.int64)
    for position, (length, ids) in enumerate(filled):
        waiting = np.concatenate([waiting, ids])
        rows = tokens_per_batch // length // multiple * multiple
        if position == len(filled) - 1:
            while len(waiting) < multiple:
                waiting = np.concatenate([buckets.pop().members, waiting])
            rows = min(rows, len(waiting) // multiple * multiple)
        if len(waiting) >= rows:
            buckets.append(_Bucket(length, rows, waiting))
            waiting = waiting[:0]
    return buckets
