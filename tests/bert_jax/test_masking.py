"""The masked-LM objective: budgets, rates, words, and the same bits everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax import mask_tokens, maskable

V, L, SLOTS, MASK = 60, 24, 4, 4
SPECIAL = np.arange(5)
# The upper third of the vocabulary are "##" pieces.
CONTINUES = np.arange(V) >= 40


@functools.partial(jax.jit, static_argnames=("slots", "whole", "rate"))
def masked(ids, key, slots=SLOTS, whole=False, rate=0.15):
    return mask_tokens(
        ids,
        maskable(ids, SPECIAL),
        key,
        num_predictions=slots,
        mask_id=MASK,
        vocab_size=V,
        rate=rate,
        continuation_V=CONTINUES if whole else None,
    )


def rows(batch, seed, length=L):
    """[CLS] text [SEP] text [SEP] padding, of random lengths."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, V, (batch, length)).astype(np.int32)
    for row in ids:
        end = rng.integers(3, length)
        row[0], row[end // 2], row[end], row[end + 1 :] = 2, 3, 3, 0
    return ids


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([0.15, 0.5, 1.0]))
def test_invariants(seed, whole, rate):
    ids = rows(6, seed)
    out = jax.device_get(masked(ids, jax.random.key(seed), whole=whole, rate=rate))
    text = ~np.isin(ids, SPECIAL)
    for row in range(6):
        used = int(out.weights_BP[row].sum())
        n = int(text[row].sum())
        budget = min(n, SLOTS, max(1, round(rate * n)))
        assert used <= budget if whole else used == budget
        at = out.positions_BP[row, :used]
        assert (np.diff(at) > 0).all() and text[row, at].all()
        assert (out.labels_BP[row, :used] == ids[row, at]).all()
        assert out.weights_BP[row].tolist() == [1.0] * used + [0.0] * (SLOTS - used)
        assert not out.positions_BP[row, used:].any() and not out.labels_BP[row, used:].any()
        elsewhere = np.setdiff1d(np.arange(L), at)
        assert (out.input_ids_BL[row, elsewhere] == ids[row, elsewhere]).all()
        assert ((out.input_ids_BL[row, at] == MASK) | (out.input_ids_BL[row, at] >= 5)).all()


def words_of(row):
    """Lists of columns; what special tokens cut off from its beginning is a word too."""
    out = []
    for column, token in enumerate(row):
        if token in SPECIAL:
            out.append(None)
        elif CONTINUES[token] and out and out[-1] is not None:
            out[-1].append(column)
        else:
            out.append([column])
    return [word for word in out if word]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31))
def test_whole_words_stay_together_and_fill_the_budget(seed):
    ids = rows(6, seed)
    out = jax.device_get(masked(ids, jax.random.key(seed), whole=True, rate=0.5, slots=9))
    for row in range(6):
        used = int(out.weights_BP[row].sum())
        chosen = set(out.positions_BP[row, :used].tolist())
        words = words_of(ids[row])
        assert chosen == {c for word in words if chosen & set(word) for c in word}
        n = int((~np.isin(ids[row], SPECIAL)).sum())
        left = min(9, max(1, round(0.5 * n))) - used
        assert all(len(word) > left for word in words if not chosen & set(word)), "a word that fits was left out"


def test_whole_words_are_taken_in_random_order_like_the_sequential_rule():
    from bert_jax.masking import _take_what_fits

    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, (200, 12)).astype(np.int32)
    budgets = rng.integers(0, 20, (200, 1)).astype(np.int32)
    taken = np.asarray(jax.jit(_take_what_fits)(sizes, budgets))
    for row in range(200):
        left = int(budgets[row, 0])
        for column, size in enumerate(sizes[row]):
            assert taken[row, column] == (size <= left)
            left -= int(size) * bool(taken[row, column])


def test_rates_over_many_rows():
    batch, length, slots = 4096, 66, 10
    ids = np.random.default_rng(0).integers(5, V, (batch, length)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    out = jax.device_get(masked(ids, jax.random.key(1), slots=slots))
    assert (out.weights_BP == 1).all()  # round(0.15 * 64) = 10
    new = np.take_along_axis(out.input_ids_BL, out.positions_BP, 1)
    drawn = new.size
    is_mask, kept = (new == MASK).mean(), (new == out.labels_BP).mean()
    error = 5 * (0.25 / drawn) ** 0.5
    assert abs(is_mask - 0.8) < error
    # A random token is the old one once in 55.
    assert abs(kept - (0.1 + 0.1 / 55)) < error
    # Every column alike, and every ordinary token is drawn.
    columns = np.bincount(out.positions_BP.ravel(), minlength=length)[1:-1] / batch
    assert np.abs(columns - slots / 64).max() < 5 * (0.13 / batch) ** 0.5
    random = new[(new != MASK) & (new != out.labels_BP)]
    assert set(random.tolist()) == set(range(5, V))


def test_whole_word_rates_over_many_rows():
    batch, length, slots = 2048, 66, 10  # 131,072 positions of text
    ids = np.random.default_rng(0).integers(5, V, (batch, length)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    out = jax.device_get(masked(ids, jax.random.key(1), slots=slots, whole=True))
    used = out.weights_BP == 1
    # A word longer than what is left of the budget is passed over: nearly all of it is used.
    assert 0.97 < used.mean() <= 1.0
    new = np.take_along_axis(out.input_ids_BL, out.positions_BP, 1)[used]
    labels = out.labels_BP[used]
    error = 5 * (0.25 / used.sum()) ** 0.5  # five standard deviations of a share
    assert abs((new == MASK).mean() - 0.8) < error
    assert abs((new == labels).mean() - (0.1 + 0.1 / 55)) < error
    # Of words in random order each that still fits is taken (Devlin et al.'s code): so short ones somewhat more often.
    chosen = np.zeros((batch, length), bool)
    np.put_along_axis(chosen, out.positions_BP, used, 1)
    rng = np.random.default_rng(2)
    drawn, expected = ({size: [] for size in range(1, 4)} for _ in range(2))
    for row in range(batch):
        words, left = words_of(ids[row]), slots
        for index in rng.permutation(len(words)):
            word, taken = words[index], len(words[index]) <= left
            left -= len(word) * taken
            assert chosen[row, word].all() or not chosen[row, word].any()
            if len(word) in drawn:
                drawn[len(word)].append(chosen[row, word[0]])
                expected[len(word)].append(taken)
    for size, ours in drawn.items():
        assert abs(np.mean(ours) - np.mean(expected[size])) < 5 * (2 * 0.15 * 0.85 / len(ours)) ** 0.5


def test_another_key_masks_other_tokens_and_the_same_key_the_same():
    ids = rows(4, 0)
    a, b, c = (masked(ids, jax.random.key(k)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (np.asarray(a.positions_BP) != np.asarray(c.positions_BP)).any()


@pytest.mark.parametrize("whole", [False, True])
def test_same_bits_on_eight_devices(whole):
    ids = rows(16, 3)
    alone = masked(jax.device_put(ids, jax.devices()[0]), jax.random.key(5), whole=whole, rate=0.5)
    mesh = jax.make_mesh((4, 2), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
    for spec in (P("data"), P(("data", "sequence")), P("data", "sequence")):
        placed = jax.device_put(ids, NamedSharding(mesh, spec))
        assert len(placed.sharding.device_set) == 8
        jax.tree.map(np.testing.assert_array_equal, alone, masked(placed, jax.random.key(5), whole=whole, rate=0.5))


def test_special_ids_at_the_end_of_the_vocabulary():
    ids = np.full((64, 32), 7, np.int32)
    options = {"num_predictions": 16, "rate": 0.5, "mask_id": 19, "vocab_size": 20}
    with pytest.raises(ValueError, match="mask_id 19 of 20 leaves no id"):
        mask_tokens(ids, maskable(ids, [19]), jax.random.key(0), **options)
    out = mask_tokens(ids, maskable(ids, [19]), jax.random.key(0), special_ids=[0, 3, 19], **options)
    new = np.asarray(out.input_ids_BL)
    assert set(new.ravel().tolist()) == set(range(20)) - {0, 3}


def test_bad_options():
    ids = jnp.zeros((1, 8), jnp.int32)
    options = {"mask_id": 4, "vocab_size": 20}
    with pytest.raises(ValueError, match="between 1 and the row's 8 tokens, not 9"):
        mask_tokens(ids, ids > 0, jax.random.key(0), num_predictions=9, **options)
    with pytest.raises(ValueError, match=r"rate .* not 0"):
        mask_tokens(ids, ids > 0, jax.random.key(0), num_predictions=2, rate=0, **options)
    out = mask_tokens(ids, ids > 0, jax.random.key(0), num_predictions=2, **options)
    assert not out.weights_BP.any()
