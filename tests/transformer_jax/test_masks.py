import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax import AttentionMask

B, L, S = 2, 3, 4


def rows(elements, width):
    return st.lists(st.lists(elements, min_size=width, max_size=width), min_size=B, max_size=B)


facts = st.fixed_dictionaries(
    {
        "padding": st.none() | rows(st.integers(0, 1), S),
        "lengths": st.none() | st.lists(st.integers(0, S + 1), min_size=B, max_size=B),
        "segments": st.none() | st.tuples(rows(st.integers(0, 2), L), rows(st.integers(0, 2), S)),
        "offset": st.none() | st.integers(0, S),
    }
)


def build(facts):
    parts = []
    if facts["padding"] is not None:
        parts.append(AttentionMask.padding(jnp.asarray(facts["padding"])))
    if facts["lengths"] is not None:
        parts.append(AttentionMask.lengths(jnp.asarray(facts["lengths"])))
    if facts["segments"] is not None:
        parts.append(AttentionMask.segments(*map(jnp.asarray, facts["segments"])))
    if facts["offset"] is not None:
        parts.append(AttentionMask.causal(facts["offset"]))
    return parts


def may_attend(facts, b, i, j):
    """One query and one key, in words."""
    return (
        (facts["padding"] is None or facts["padding"][b][j] == 1)
        and (facts["lengths"] is None or j < facts["lengths"][b])
        and (facts["segments"] is None or facts["segments"][0][b][i] == facts["segments"][1][b][j])
        and (facts["offset"] is None or j <= facts["offset"] + i)
    )


@settings(deadline=None, max_examples=120, derandomize=True)
@given(facts, st.randoms(use_true_random=False))
def test_dense_is_what_each_pair_says(facts, random):
    parts = build(facts)
    random.shuffle(parts)
    mask = AttentionMask()
    for part in parts:
        mask &= part
    dense = mask.dense(L, S)
    assert (dense is None) == (not parts)
    if dense is not None:
        assert dense.dtype == bool and dense.shape[1] == 1
        expected = [[[may_attend(facts, b, i, j) for j in range(S)] for i in range(L)] for b in range(B)]
        np.testing.assert_array_equal(np.broadcast_to(dense, (B, 1, L, S))[:, 0], expected)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    rows(st.integers(0, 1), S), rows(st.integers(0, 1), S), *[st.lists(st.integers(0, S), min_size=B, max_size=B)] * 2
)
def test_two_masks_of_a_kind_allow_what_both_allow(mask, other_mask, lengths, other_lengths):
    for make, one, two in (
        (AttentionMask.padding, mask, other_mask),
        (AttentionMask.lengths, lengths, other_lengths),
    ):
        a, b = make(jnp.asarray(one)), make(jnp.asarray(two))
        np.testing.assert_array_equal((a & b).dense(L, S), a.dense(L, S) & b.dense(L, S))


def test_segments_of_self_attention_are_those_of_the_queries():
    ids = jnp.asarray([[1, 1, 2]])
    np.testing.assert_array_equal(AttentionMask.segments(ids).dense(3, 3)[0, 0], [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


def test_a_mask_and_nothing_is_the_mask():
    mask = AttentionMask.causal()
    assert (mask & None) is mask


def test_masks_that_cannot_be_combined():
    segments = AttentionMask.segments(jnp.ones((1, 2), jnp.int32))
    with pytest.raises(ValueError, match="segments cannot be combined"):
        _ = segments & segments
    with pytest.raises(ValueError, match="two causal masks"):
        _ = AttentionMask.causal() & AttentionMask.causal(2)
