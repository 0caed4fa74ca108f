import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.batches import ExampleBatches, bucket_lengths, iterate
from train.errors import InputError


class Numbers:
    """Example i is i and its square; counts how many were read."""

    def __init__(self, count):
        self.count, self.read = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read += 1
        return {"x": np.asarray(index, np.int32), "squares_2": np.full(2, index**2, np.int64)}


def batches(count=10, batch_size=4, seed=0, steps=20, **hosts):
    return ExampleBatches(Numbers(count), batch_size=batch_size, seed=seed, steps=steps, **hosts)


def test_batches_are_stacked_examples():
    batch = batches()[3]
    assert batch["x"].shape == (4,) and batch["x"].dtype == np.int32
    assert np.array_equal(batch["squares_2"], np.stack([batch["x"].astype(np.int64) ** 2] * 2, axis=1))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.integers(1, 4), st.sampled_from([1, 2, 3]), st.integers(0, 2**40))
def test_epochs_are_permutations_and_hosts_put_together_the_same_batches(count, per_host, hosts, seed):
    size = per_host * hosts
    steps = -(-3 * count // size)
    whole = batches(count, size, seed, steps)
    parts = [batches(count, size, seed, steps, process_index=p, process_count=hosts) for p in range(hosts)]
    seen = []
    for step in range(steps):
        together = np.concatenate([part[step]["x"] for part in parts])
        assert np.array_equal(together, whole[step]["x"])
        seen.extend(together.tolist())
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_order_differs_between_epochs_and_between_seeds():
    def epoch(number, seed):
        return batches(count=32, batch_size=32, seed=seed)[number]["x"].tolist()

    orders = [epoch(0, 0), epoch(1, 0), epoch(2, 0), epoch(0, 1), epoch(1, 1)]
    assert len({tuple(order) for order in orders}) == 5
    assert epoch(1, 0) == orders[1]


def test_ends_and_bad_sizes():
    assert len(batches(steps=7)) == 7
    for index in (-1, 7):
        with pytest.raises(IndexError):
            batches(steps=7)[index]
    with pytest.raises(InputError, match="no examples"):
        batches(count=0)
    for options in ({"batch_size": 0}, {"batch_size": 4, "process_count": 3}):
        with pytest.raises(InputError, match="--batch-size"):
            batches(**options)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_iterator_gives_the_batches_in_order_and_ends(prefetch):
    source = batches(steps=9)
    found = [batch["x"].tolist() for batch in iterate(source, start=5, prefetch=prefetch)]
    assert found == [source[step]["x"].tolist() for step in range(5, 9)]


def test_state_is_small_json_and_restores_the_same_batches():
    source = batches(steps=50)
    iterator = iterate(source)
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": 3}
    expected = [next(iterator)["x"].tolist() for _ in range(4)]
    other = iterate(source)
    next(other)
    other.set_state(state)
    assert [next(other)["x"].tolist() for _ in range(4)] == expected
    other.close()
    iterator.close()


def test_seeking_reads_only_what_comes_next():
    source = batches(count=1000, steps=10**9)
    iterator = iterate(source, start=10**8, prefetch=0)
    batch = next(iterator)
    assert source._examples.read == 4
    assert np.array_equal(batch["x"], source[10**8]["x"])
    iterator.set_state({"next_index": 10**9 - 1})
    next(iterator)
    assert source._examples.read == 12
    with pytest.raises(StopIteration):
        next(iterator)


def test_an_error_in_an_example_reaches_the_loop():
    class Broken(Numbers):
        def __getitem__(self, index):
            raise InputError("row 3 is bad")

    source = ExampleBatches(Broken(5), batch_size=2, seed=0, steps=3)
    with pytest.raises(InputError, match="row 3 is bad"):
        next(iterate(source))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=60),
    count=st.integers(1, 3),
    multiple=st.sampled_from([1, 8, 16]),
    maximum=st.integers(20, 64),
)
def test_bucket_lengths_pad_least(lengths, count, multiple, maximum):
    bounds = bucket_lengths(lengths, count, multiple, maximum=maximum)
    kept = [length for length in lengths if length <= maximum]
    assert 1 <= len(bounds) <= count and list(bounds) == sorted(set(bounds)) and bounds[-1] <= maximum
    assert all(bound % multiple == 0 or bound == maximum for bound in bounds)
    if not kept:
        assert bounds == (maximum,)
        return

    def padded(bounds):
        return sum(min(bound for bound in bounds if bound >= length) for length in kept)

    possible = [*range(multiple, bounds[-1], multiple), bounds[-1]]
    assert bounds[-1] - max(kept) < multiple
    for other in possible:  # any two buckets, and moving one boundary, pad no less
        if count > 1:
            assert padded(bounds) <= padded({other, bounds[-1]})
        for moved in range(len(bounds) - 1):
            assert padded(bounds) <= padded({*bounds[:moved], other, *bounds[moved + 1 :]})
