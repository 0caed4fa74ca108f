"""Batches of differing length: every example once, nothing but padding added, the same on any number of hosts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.padded import PaddedBatches, bucket_of, in_order, stack

PADDING = {"input_ids": 9, "attention_mask": 0, "tags": -100}


def example(number, length):
    """All but the padding tells which example it is."""
    ids = np.full(length, 100 + number, np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "tags": ids + 1, "label": np.int32(number)}


def examples(lengths):
    return [example(number, length) for number, length in enumerate(lengths)]


def check_row(batch, row, lengths):
    number = int(batch["label"][row])
    used = lengths[number]
    for name, filler in PADDING.items():
        value = {"input_ids": 100 + number, "attention_mask": 1, "tags": 101 + number}[name]
        assert (batch[name][row, :used] == value).all() and (batch[name][row, used:] == filler).all()
    return number


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 8))
def test_in_order_gives_every_example_once(lengths, batch_size):
    seen, shapes = [], set()
    for members, batch in in_order(examples(lengths), PADDING, batch_size):
        real = int(batch["weights"].sum())
        assert batch["weights"].tolist() == [1.0] * real + [0.0] * (batch_size - real) and real == len(members)
        found = [check_row(batch, row, lengths) for row in range(batch_size)]
        assert found[:real] == members.tolist() and set(found[real:]) <= {found[0]}
        seen += found[:real]
        shapes.add(batch["input_ids"].shape)
    assert sorted(seen) == list(range(len(lengths))) and len(shapes) <= 4


# Few, for grain takes milliseconds to shuffle an index of a handful: it walks through all numbers of 16 bits.
@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, hosts=st.sampled_from([1, 2, 4]), seed=st.integers(0, 3))
def test_batches_are_those_of_one_host_in_few_shapes(lengths, hosts, seed):
    options = {"padding": PADDING, "batch_size": 8, "seed": seed, "steps": 4}
    whole = PaddedBatches(examples(lengths), **options)
    parts = [
        PaddedBatches(examples(lengths), **options, process_index=host, process_count=hosts) for host in range(hosts)
    ]
    assert len(whole.buckets) <= 4
    for k in range(4):
        batch = whole[k]
        assert [check_row(batch, row, lengths) for row in range(8)] == whole.members(k).tolist()
        assert batch["input_ids"].shape[1] == bucket_of(max(lengths[m] for m in whole.members(k)), whole.buckets)
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([part[k][name] for part in parts]), batch[name])


def test_an_epoch_has_every_example_once():
    batches = PaddedBatches(examples(range(1, 13)), padding=PADDING, batch_size=4, seed=3, steps=6)
    for epoch in (0, 1):
        members = np.concatenate([batches.members(3 * epoch + k) for k in range(3)])
        assert sorted(members.tolist()) == list(range(12))
    with pytest.raises(IndexError, match="batch 6 of 6"):
        batches[6]


def test_only_the_last_axis_is_padded():
    choices = [{"input_ids": np.ones((3, length), np.int32), "label": np.int32(0)} for length in (2, 5)]
    batch = stack(choices, 6, PADDING)
    assert batch["input_ids"].shape == (2, 3, 6)
    assert batch["input_ids"].sum(-1).tolist() == [[2 + 4 * 9] * 3, [5 + 9] * 3]
