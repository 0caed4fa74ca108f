"""Packed pairs: what is in a batch and in an epoch, how full rows are, and that the loss knows nothing of it."""

from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.batches import iterate
from train.data.packing import PackedBatches, pack
from train.data.parallel import EOS_ID
from train.errors import InputError
from train.objectives import TranslateObjective
from transformer_jax import Transformer, TransformerConfig, cross_entropy

SIDES = ("input_ids", "segment_ids", "position_ids"), ("labels", "decoder_segment_ids", "decoder_position_ids")


def corpus(lengths):
    """Sources and targets whose tokens tell the example: number n is 2 * n + 2 in sources, 2 * n + 3 in targets."""
    sources = [[2 * n + 2] * (source - 1) + [EOS_ID] for n, (source, _) in enumerate(lengths)]
    targets = [[2 * n + 3] * (target - 1) + [EOS_ID] for n, (_, target) in enumerate(lengths)]
    return sources, targets


def make(lengths, tokens=400, **options):
    return PackedBatches(*corpus(lengths), tokens_per_batch=tokens, **{"max_length": 40, "seed": 0, **options})


def segments_of(batch):
    """The (row, number, source, target) of a batch's segments, after a check of numbers, positions and padding."""
    found = [[], []]
    for side, names in zip(found, SIDES, strict=True):
        ids, segments, positions = (batch[name] for name in names)
        assert ids.shape == segments.shape == positions.shape and {a.dtype for a in batch.values()} == {np.dtype("i4")}
        for row in range(len(ids)):
            numbers = segments[row][segments[row] > 0]
            last = numbers.max(initial=0)
            expected = np.sort(numbers)  # 1, 1, 2, 2, 2, ..., and padding at the end
            np.testing.assert_array_equal(segments[row], np.pad(expected, (0, len(ids[row]) - len(expected))))
            assert not ids[row][segments[row] == 0].any() and not positions[row][segments[row] == 0].any()
            for number in range(1, last + 1):
                inside = segments[row] == number
                np.testing.assert_array_equal(positions[row][inside], np.arange(inside.sum()))
                side.append((row, number, ids[row][inside].tolist()))
    assert [place[:2] for place in found[0]] == [place[:2] for place in found[1]]
    return [(*source, target[2]) for source, target in zip(*found, strict=True)]


def examples_of(batch):
    """(row, example, source length, target length) of each segment, which are whole and belong together."""
    examples = []
    for row, _, source, target in segments_of(batch):
        assert source[-1] == target[-1] == EOS_ID and target[0] == source[0] + 1 and source[0] % 2 == 0
        assert set(source[:-1]) == {source[0]} and set(target[:-1]) == {target[0]}
        examples.append((row, source[0] // 2 - 1, len(source), len(target)))
    return examples


LENGTHS = st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    max_length=st.integers(2, 45),
    tokens=st.integers(1, 700),
    multiple=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 2**32),
)
def test_an_epoch_holds_each_example_once(lengths, max_length, tokens, multiple, seed):
    kept = [n for n, pair in enumerate(lengths) if max(pair) <= max_length]
    options = {"tokens": tokens, "max_length": max_length, "multiple": multiple, "seed": seed, "steps": 500}
    if not kept:
        with pytest.raises(InputError, match=r"^--eval\.data: none of .*--max-length"):
            make(lengths, **options, option="--eval.data")
        return
    needed = multiple * max(lengths[n][1] for n in kept)
    if tokens < needed:
        with pytest.raises(InputError, match=rf"^--batch-size {tokens} .*; give {needed} or more"):
            make(lengths, **options)
        options["tokens"] = tokens = needed
    batches = make(lengths, **options)
    rows, source_length, target_length = batches.shape
    assert batches.dropped == len(lengths) - len(kept)
    assert rows % multiple == 0 and rows * target_length <= tokens
    n = batches.batches_per_epoch
    for epoch in range(2):
        seen = []
        for k in range(epoch * n, epoch * n + n):
            batch = batches[k]
            assert batch["input_ids"].shape == (rows, source_length) and batch["labels"].shape == (rows, target_length)
            seen += [example for _, *example in examples_of(batch)]
        assert sorted(seen) == [[number, *lengths[number]] for number in kept]
    real = np.sum([lengths[number] for number in kept], axis=0)
    np.testing.assert_allclose(batches.padding, 1 - real / (n * rows * np.array(batches.shape[1:])), atol=1e-12)
    assert (n - 1) * rows < sum(max(pair) for pair in lengths)  # an epoch without examples would never end


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 1000), order=st.permutations(range(12)))
def test_any_order_of_access_and_any_number_of_hosts_give_the_same(lengths, seed, order):
    options = {"seed": seed, "steps": 12, "multiple": 4}
    whole = make(lengths, **options)
    expected = [whole[k] for k in range(12)]
    fresh = make(lengths, **options)
    for k in order:
        np.testing.assert_equal(fresh[k], expected[k])
    for hosts in (2, 4):
        parts = [make(lengths, **options, process_index=p, process_count=hosts) for p in range(hosts)]
        assert {part.batches_per_epoch for part in parts} == {whole.batches_per_epoch}
        for k in order[:4]:
            for name, array in expected[k].items():
                slices = [part[k][name] for part in parts]
                assert len({part.shape for part in slices}) == 1
                np.testing.assert_array_equal(np.concatenate(slices), array)


def test_epochs_and_seeds_differ_and_threads_change_nothing():
    lengths = [(5 + n % 10, 6 + n % 5) for n in range(200)]
    batches = make(lengths, 200, steps=100)
    n = batches.batches_per_epoch
    first, second = ([examples_of(batches[k]) for k in range(e * n, e * n + n)] for e in range(2))
    other = make(lengths, 200, seed=1, steps=100)
    assert n > 5 and first != second and first != [examples_of(other[k]) for k in range(n)]

    def company(epoch):  # who shares a row with example 0
        rows = [[e for r, e, *_ in batch if r == row] for batch in epoch for row in {row for row, *_ in batch}]
        (row,) = [row for row in rows if 0 in row]
        return set(row)

    assert company(first) != company(second)
    rows = [[[tuple(lengths) for _, _, *lengths in batch] for batch in epoch] for epoch in (first, second)]
    assert rows[0] != rows[1]  # and which lengths are in which batch
    with closing(iterate(batches, start=3)) as iterator:
        for k in range(3, 60):
            np.testing.assert_equal(next(iterator), batches[k])
    for k in (100, -1):
        with pytest.raises(IndexError):
            batches[k]
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        make(lengths, steps=1, process_count=2)


@pytest.mark.parametrize(
    ("median", "ratio", "tokens"),
    [(24, 1.1, 25_000), (24, 1.1, 4096), (9, 1.0, 2048), (15, 0.6, 4096), (12, 3.0, 8192)],
)
def test_hardly_anything_is_padding(median, ratio, tokens):
    rng = np.random.default_rng(0)
    source = rng.lognormal(np.log(median), 0.6, 20_000)
    target = ratio * source * rng.lognormal(0, 0.25, 20_000)
    lengths = np.maximum(np.rint(np.stack([source, target], axis=1)).astype(int), 2)
    batches = make(lengths.tolist(), tokens, max_length=128, steps=1, multiple=8)
    share = np.array(batches.shape[1:]) / sum(batches.shape[1:])
    assert share @ batches.padding < 0.05 and max(batches.padding) < 0.08 and batches.dropped < 2000
    assert 0.9 * tokens < batches.shape[0] * batches.shape[2] <= tokens


def one_at_a_time(lengths, room):
    """The rule of `pack` for one example after another: the number of pairs of lengths in each row."""
    share = lambda pair: (pair[0] / room[0], pair[1] / room[1])  # noqa: E731
    left = sorted(map(tuple, lengths), key=lambda pair: (-sum(share(pair)), pair))
    rows = []
    while left:
        row = [left.pop(0)]
        while True:
            rest = [room[side] - sum(pair[side] for pair in row) for side in range(2)]
            fits = [pair for pair in left if pair[0] <= rest[0] and pair[1] <= rest[1]]
            if not fits:
                break
            room_left = np.array(share(rest))
            row.append(min(fits, key=lambda pair: np.square(room_left - share(pair)).sum()))
            left.remove(row[-1])
        rows.append(tuple(row))
    return rows


def test_rows_made_in_bulk_are_those_made_one_by_one():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, (300, 2)) * 2 + rng.integers(0, 2, (300, 1)) * 5
    cells, count = np.unique(lengths, axis=0, return_counts=True)
    slots, counts = pack(cells, count.copy(), np.array([32, 32]))
    rows = np.split(cells[slots], np.cumsum(counts)[:-1])
    expected = one_at_a_time(lengths.tolist(), (32, 32))
    assert sorted(tuple(map(tuple, row.tolist())) for row in rows) == sorted(expected)
    assert len(rows) < 1.05 * max(lengths.sum(0)) / 32


def test_millions_are_packed_as_quickly_as_thousands():
    cells = np.array([[s, t] for s in range(2, 12) for t in range(2, 12)])
    slots, counts = pack(cells, np.full(len(cells), 50_000), np.array([48, 48]))
    assert len(slots) == counts.sum() == 5_000_000 and (np.bincount(slots) == 50_000).all()
    assert 6.5 / 48 * 5_000_000 <= len(counts) < 1.02 * 6.5 / 48 * 5_000_000


# --- the loss ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """A model with dropout, and a batch in which a source fills its row and the target does not."""
    config = TransformerConfig.tiny(
        24, features=16, num_heads=2, mlp_dim=24, encoder_layers=1, decoder_layers=1, positions="learned", max_length=7
    )
    model = Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 2), int), jnp.ones((1, 2), int))["params"]
    rng = np.random.default_rng(0)
    draw = lambda length: [*rng.integers(2, 24, length - 1).tolist(), EOS_ID]  # noqa: E731
    pairs = [(draw(s), draw(t)) for s, t in [(3, 7), (5, 4), (6, 2), (2, 2), (4, 5), (7, 6), (3, 3)]]
    batches = PackedBatches(*zip(*pairs, strict=True), tokens_per_batch=40, max_length=7, seed=0, steps=1, multiple=2)
    batch = batches[0]
    full = (batch["segment_ids"] > 0).all(1) & ~(batch["decoder_segment_ids"] > 0).all(1)
    assert batches.batches_per_epoch == 1 and batches.shape[2] > 7 and full.any()
    assert batch["segment_ids"].max() > 1
    return model, params, pairs, batch


def test_packed_loss_and_gradients_are_those_of_each_pair_alone(tiny):
    model, params, pairs, batch = tiny
    objective = TranslateObjective(model, label_smoothing=0.1)
    _, weights = objective.prepare(batch, jax.random.key(0))
    assert weights["tokens"] == sum(len(target) for _, target in pairs)

    def packed(params):
        sums = objective.sums(params, batch, None)
        return sums["smoothed_loss"], sums

    source, target = (np.array([ids + [0] * (7 - len(ids)) for ids in side]) for side in zip(*pairs, strict=True))

    def apart(params):
        inputs = np.insert(target, 0, model.config.decoder_start_id, axis=1)[:, :-1]
        logits = model.apply({"params": params}, source, inputs, source > 0).logits
        return cross_entropy(logits, target, target > 0, label_smoothing=0.1)[0]

    (loss, sums), gradients = jax.jit(jax.value_and_grad(packed, has_aux=True))(params)
    expected, expected_gradients = jax.jit(jax.value_and_grad(apart))(params)
    # Other orders of float32 sums over some 30 tokens, whose losses are about 3 each.
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale), gradients, expected_gradients
    )
    assert 0 <= sums["accuracy"] <= weights["accuracy"] and sums["nll_loss"] < sums["smoothed_loss"] * 1.5


def test_no_example_of_a_batch_sees_another(tiny):
    model, params, _, batch = tiny

    class Recorded:
        config, logits = model.config, None

        def apply(self, *arguments, **options):
            out = model.apply(*arguments, **options)
            self.logits = out.logits
            return out

    @jax.jit
    def run(batch):
        recorded = Recorded()
        TranslateObjective(recorded, 0.1).sums(params, batch, None)
        return recorded.logits

    logits, segments = run(batch), batch["decoder_segment_ids"]
    row = int(np.argmax(batch["segment_ids"].max(1)))
    for number in range(batch["segment_ids"][row].max() + 1):
        changed = {name: array.copy() for name, array in batch.items()}
        for ids, parts, _ in SIDES:
            inside = batch[parts][row] == number
            changed[ids][row][inside] = (changed[ids][row][inside] + 5) % 24
        other = run(changed)
        untouched = np.ones(segments.shape, bool)
        untouched[row] = segments[row] != number
        np.testing.assert_array_equal(other[untouched & (segments > 0)], logits[untouched & (segments > 0)])
        if number:
            assert (np.abs(other[~untouched] - logits[~untouched]).max(-1) > 0).all()
