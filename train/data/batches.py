"""From examples to batches: batch k is a pure function of (seed, k), on any number of hosts."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

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


# --- lengths -----------------------------------------------------------------------------------------------------


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
