"""Batches of examples of differing length: padded to the few lengths that are compiled."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from train.data.batches import Batch, ExampleBatches, bucket_lengths

Example = dict[str, np.ndarray]
BUCKETS = 4


class PaddedBatches(ExampleBatches):
    """`ExampleBatches` over examples whose arrays differ in length on their last axis.

    A batch is padded to the first of at most four lengths that holds its longest example: those which need the least
    padding in the first epoch. `weights` (float32 [B]) is 1 for each row.

    Args:
        padding: names of the arrays that are padded -> what fills them up. `input_ids`, whose last axis is the length
            of an example, is one of them; all others are of one shape, and stacked.
    """

    def __init__(self, examples: Sequence[Example], *, padding: Mapping[str, int], **options: Any) -> None:
        super().__init__(examples, **options)
        self._padding, self._lengths = padding, lengths_of(examples)
        epoch = range(min(self._steps, max(1, len(examples) // self._batch_size)))
        longest = [int(self._lengths[self.members(k)].max()) for k in epoch]
        self.buckets = bucket_lengths([*longest, int(self._lengths.max())], BUCKETS, maximum=int(self._lengths.max()))

    def __getitem__(self, index: int) -> Batch:
        members = self.members(index)
        length = bucket_of(int(self._lengths[members].max()), self.buckets)
        local = members[self._offset : self._offset + self._rows]
        batch = stack([self._examples[member] for member in local], length, self._padding)
        return batch | {"weights": np.ones(len(local), np.float32)}


def in_order(
    examples: Sequence[Example],
    padding: Mapping[str, int],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, those of like length together: (members of the global batch, this host's rows of it).

    The last batch is filled up with copies of its first example, whose `weights` are 0; they are no members.
    """
    lengths = lengths_of(examples)
    order = np.argsort(lengths, kind="stable")
    buckets = bucket_lengths([int(n) for n in lengths], BUCKETS, maximum=int(lengths.max()))
    local = batch_size // process_count
    for begin in range(0, len(order), batch_size):
        members = order[begin : begin + batch_size]
        rows = np.concatenate([members, np.repeat(members[:1], batch_size - len(members))])
        weights = (np.arange(batch_size) < len(members)).astype(np.float32)
        mine = slice(process_index * local, (process_index + 1) * local)
        length = bucket_of(int(lengths[members].max()), buckets)
        batch = stack([examples[row] for row in rows[mine]], length, padding)
        yield members, batch | {"weights": weights[mine]}


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """The number of tokens of each example: the last axis of its `input_ids`."""
    return np.array([example["input_ids"].shape[-1] for example in examples])


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The first of the ascending lengths that holds `length`."""
    return next(bucket for bucket in buckets if bucket >= length)


def stack(examples: Sequence[Example], length: int, padding: Mapping[str, int]) -> Batch:
    """Stacks examples; those arrays that have a padding are filled up on their last axis."""
    batch = {}
    for name, first in examples[0].items():
        if name not in padding:
            batch[name] = np.stack([example[name] for example in examples])
            continue
        shape = (len(examples), *first.shape[:-1], length)
        batch[name] = np.full(shape, padding[name], first.dtype)
        for row, example in enumerate(examples):
            batch[name][row, ..., : example[name].shape[-1]] = example[name]
    return batch
