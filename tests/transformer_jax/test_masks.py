import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax import AttentionMask, Encoder, MultiHeadAttention, StackConfig, dot_product_attention

B, L, S = 2, 3, 4


def rows(elements, width):
    return st.lists(st.lists(elements, min_size=width, max_size=width), min_size=B, max_size=B)


facts = st.fixed_dictionaries(
    {
        "padding": st.none() | rows(st.integers(0, 1), S),
        "lengths": st.none() | st.lists(st.integers(0, S), min_size=B, max_size=B),
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


# --- what is no mask ---------------------------------------------------------------------------------------------

ONES = np.array([[1, 1, 0, 0], [1, 0, 0, 1]])
KINDS = ["bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64", "bfloat16"]


@pytest.mark.parametrize("kind", KINDS)
def test_ones_and_zeros_of_any_type_are_a_mask(kind):
    array = np.asarray(ONES, jnp.dtype(kind))
    for mask in (array, jnp.asarray(array)):
        key_mask = AttentionMask.padding(mask, (2, 4)).key_mask_BS
        assert key_mask.dtype == bool
        np.testing.assert_array_equal(key_mask, ONES == 1)
    np.testing.assert_array_equal(AttentionMask.padding(ONES.tolist()).key_mask_BS, ONES == 1)


@pytest.mark.parametrize(
    "mask", [(1 - ONES) * -1e9, (1 - ONES) * -10000, ONES * np.nan, ONES * 0.3, ONES * 2, ONES * -1, ONES * 255]
)
def test_other_values_are_refused_where_they_are_at_hand(mask):
    for array in (mask, jnp.asarray(mask)):
        with pytest.raises(ValueError, match="must be 1 or True for tokens, .* an additive mask .* the opposite"):
            AttentionMask.padding(array)


@pytest.mark.parametrize(
    ("mask", "shape", "message"),
    [
        (ONES[:, None, None, :], None, r"the shape \[rows, keys\], not \(2, 1, 1, 4\)"),
        (ONES[0], None, r"not \(4,\)"),
        (np.ones((0, 4)), None, r"not \(0, 4\)"),
        (np.ones((2, 0)), None, r"not \(2, 0\)"),
        (ONES, (1, 4), r"the shape \(1, 4\), as the ids have, not \(2, 4\)"),
        (ONES[:1], (2, 4), r"\(2, 4\), as the ids have, not \(1, 4\)"),
        (ONES[:, :1], (2, 4), r"not \(2, 1\)"),
        (ONES + 0j, None, "not complex128"),
        ([["1", "0"]], None, "not of <U1"),
        ([[1, 0], [1]], None, "rows of one length"),
    ],
)
def test_other_shapes_and_types_are_refused(mask, shape, message):
    with pytest.raises(ValueError, match=f"attention_mask .*{message}"):
        AttentionMask.padding(mask, shape)


def test_under_jit_floats_are_refused_and_integers_are_tokens_where_they_are_one():
    padding = jax.jit(lambda mask: AttentionMask.padding(mask).key_mask_BS)
    np.testing.assert_array_equal(padding(jnp.array([[0, 1, 2, -10000]])), [[False, True, False, False]])
    np.testing.assert_array_equal(padding(ONES == 1), ONES == 1)
    with pytest.raises(ValueError, match="booleans or integers under jit, not float32"):
        padding(ONES.astype(np.float32))


def test_a_mask_made_by_hand_must_be_booleans():
    key_mask = jnp.asarray(ONES) * 2
    for use in (
        lambda mask: mask & AttentionMask.causal(),
        lambda mask: AttentionMask.causal() & mask,
        lambda mask: mask.dense(4, 4),
        jax.jit(lambda mask: mask.dense(4, 4)),
    ):
        with pytest.raises(ValueError, match="key_mask_BS must be booleans .see AttentionMask.padding., not int32"):
            use(AttentionMask(key_mask_BS=key_mask))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionMask.lengths([1.0, 2.0]), "key_lengths_B must be integers, not float64"),
        (lambda: AttentionMask.lengths([True, False]), "key_lengths_B must be integers, not bool"),
        (lambda: AttentionMask.lengths([[1, 2]]), r"key_lengths_B must have the shape \[any\], not \[1, 2\]"),
        (lambda: AttentionMask.lengths([-1, 2]), "key_lengths_B must lie from 0 up, not -1 to 2"),
        (lambda: AttentionMask.lengths(jnp.array([5, 2])).dense(3, 4), "from 0 to 4, not 2 to 5"),
        (lambda: AttentionMask.segments([1, 1]), r"query_segments_BL must be .* not \(2,\)"),
        (lambda: AttentionMask.segments([[0.5, 1.0]]), "query_segments_BL must be integers"),
        (lambda: AttentionMask.segments([[1, 1]], [[True, False]]), "key_segments_BS must be integers"),
        (lambda: AttentionMask(query_segments_BL=np.ones((1, 2), int)).dense(2, 2), "only one of them is given"),
        (lambda: AttentionMask.causal(-1), "offset must lie from 0 up"),
        (lambda: AttentionMask.causal(0.5), "offset must be integers"),
        (lambda: AttentionMask.causal(np.zeros(2, int)), r"offset must have the shape \[\], not \[2\]"),
        (lambda: AttentionMask.causal() & np.ones((2, 4)), "AttentionMask, not ndarray: .*AttentionMask.padding"),
        (lambda: AttentionMask.padding(ONES[:, :1]).dense(4, 4), r"the shape \[any, 4\], not \[2, 1\]"),
        (lambda: AttentionMask.segments(ONES).dense(3, 4), r"query_segments_BL .*\[any, 3\], not \[2, 4\]"),
    ],
)
def test_lengths_segments_and_offsets_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["padding", "lengths", "segments"])
def test_a_mask_of_another_batch_is_refused(kind, rows):
    mask = getattr(AttentionMask, kind)(np.ones(rows if kind == "lengths" else (rows, S), int))
    x = jnp.ones((2, S, 1, 8))
    with pytest.raises(ValueError, match=rf"must have the shape \[2.*\], not \[{rows}"):
        dot_product_attention(x, x, x, mask)


def test_a_raw_array_as_a_mask_is_refused_by_name():
    x = jnp.ones((2, S, 8))
    head = jnp.ones((2, S, 1, 8))
    layer, stack = MultiHeadAttention(8, 2), Encoder(StackConfig(1, 8, 2, mlp_dim=8, dropout_rate=0.0))
    for use in (
        lambda mask: dot_product_attention(head, head, head, mask),
        lambda mask: jax.eval_shape(layer.init, jax.random.key(0), x, mask),
        lambda mask: jax.eval_shape(stack.init, jax.random.key(0), x, mask),
    ):
        for mask in (ONES, jnp.asarray(ONES) == 1, ONES.tolist()):
            with pytest.raises(ValueError, match="mask must be an AttentionMask, not .*AttentionMask.padding"):
                use(mask)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 8), (2, 3, 8), (2, 3, 8)), r"queries must be .batch, length, heads, head size.*not \[2, 3, 8\]"),
        (((2, 3, 2, 4), (1, 3, 2, 4), (1, 3, 2, 4)), r"keys must be \[2, 3, 2, 4\] .* not \[1, 3, 2, 4\]"),
        (((2, 3, 2, 4), (2, 5, 2, 4), (2, 1, 2, 4)), r"values must be \[2, 5, 2, 4\] .* not \[2, 1, 2, 4\]"),
        (((2, 3, 2, 4), (2, 5, 1, 4), (2, 5, 1, 4)), r"keys must be \[2, 5, 2, 4\]"),
        (((2, 3, 2, 4), (2, 0, 2, 4), (2, 0, 2, 4)), r"keys must be .* nothing of it empty, not \[2, 0, 2, 4\]"),
    ],
)
def test_attention_broadcasts_nothing(shapes, message):
    with pytest.raises(ValueError, match=message):
        dot_product_attention(*map(jnp.ones, shapes))


def test_attention_is_for_floating_point_numbers_and_known_kernels():
    x = jnp.ones((1, 2, 1, 4))
    with pytest.raises(ValueError, match="queries must be floating-point numbers, not int32"):
        dot_product_attention(x.astype(int), x, x)
    with pytest.raises(ValueError, match="implementation must be 'auto', 'xla', 'blocked' or 'cudnn', not 'flash'"):
        dot_product_attention(x, x, x, implementation="flash")
