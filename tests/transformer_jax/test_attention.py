import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import (
    AttentionMask,
    Dropout,
    KVCache,
    MultiHeadAttention,
    attention,
    attention_weights,
    dot_product_attention,
    dropout,
)
from transformer_jax.attention import _cudnn_obstacle

B, L, S, H, K, D = 2, 3, 4, 2, 4, 8
rng = np.random.default_rng(0)
Q, KEY, VALUE = (rng.normal(size=(B, n, H, K)).astype(np.float32) for n in (L, S, S))
X, MEMORY = (rng.normal(size=(B, n, D)).astype(np.float32) for n in (L, S))
SEED = jnp.asarray([1, 2], jnp.uint32)

# Every mask leaves each query a key; the rows without keys have a test of their own.
MASKS = {
    "none": None,
    "padding": AttentionMask.padding(jnp.asarray([[0, 1, 1, 0], [1, 1, 1, 1]])),
    "lengths": AttentionMask.lengths(jnp.asarray([1, 3])),
    "causal": AttentionMask.causal(),
    "offset": AttentionMask.causal(1),
    "segments": AttentionMask.segments(jnp.asarray([[0, 0, 1], [2, 3, 3]]), jnp.asarray([[0, 1, 1, 0], [2, 2, 3, 9]])),
    "all": AttentionMask.causal(1)
    & AttentionMask.lengths(jnp.asarray([2, 4]))
    & AttentionMask.padding(jnp.ones((B, S))),
}


def softmax_oracle(q, k, dense):
    scores = np.einsum("BLHK,BSHK->BHLS", q.astype(np.float64), k.astype(np.float64)) / np.sqrt(q.shape[-1])
    if dense is not None:
        scores = np.where(np.asarray(dense), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention_oracle(q, k, v, mask):
    dense = None if mask is None else mask.dense(q.shape[1], k.shape[1])
    return np.einsum("BHLS,BSHK->BLHK", softmax_oracle(q, k, dense), v.astype(np.float64))


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
@pytest.mark.parametrize("name", MASKS)
def test_attention_and_its_gradient_are_those_of_the_definition(name, implementation, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 2)  # of 3 queries: the last block is filled up
    mask = MASKS[name]
    attend = functools.partial(dot_product_attention, implementation=implementation)
    y, vjp = jax.vjp(jax.jit(lambda *qkv: attend(*qkv, mask)), Q, KEY, VALUE)
    np.testing.assert_allclose(y, attention_oracle(Q, KEY, VALUE, mask), atol=1e-5)

    # Directional derivatives of the float64 oracle, by central differences.
    g = np.random.default_rng(1).normal(size=y.shape)
    gradients = vjp(jnp.asarray(g, jnp.float32))
    for which, gradient in enumerate(gradients):
        args = [a.astype(np.float64) for a in (Q, KEY, VALUE)]
        direction, step = np.random.default_rng(2 + which).normal(size=args[which].shape), 1e-5
        values = []
        for sign in (1, -1):
            moved = [a + sign * step * direction if i == which else a for i, a in enumerate(args)]
            values.append((attention_oracle(*moved, mask) * g).sum())
        np.testing.assert_allclose(
            (gradient * direction).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_values_may_have_a_size_of_their_own(implementation, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 2)
    wide = np.concatenate([VALUE, 2 * VALUE], axis=-1)
    y = dot_product_attention(*map(jnp.asarray, (Q, KEY, wide)), implementation=implementation)
    np.testing.assert_allclose(y, attention_oracle(Q, KEY, wide, None), atol=1e-5)


def test_weights_sum_to_one_and_are_zero_where_masked():
    mask = MASKS["segments"]
    weights_BHLS = np.asarray(attention_weights(jnp.asarray(Q), jnp.asarray(KEY), mask))
    assert weights_BHLS.shape == (B, H, L, S) and weights_BHLS.dtype == np.float32
    np.testing.assert_allclose(weights_BHLS.sum(-1), 1.0, atol=1e-6)
    dense = np.broadcast_to(mask.dense(L, S), weights_BHLS.shape)
    assert (weights_BHLS[~dense] == 0.0).all() and (weights_BHLS[dense] > 0.0).all()


def test_rows_without_keys_are_finite_forwards_and_backwards():
    mask = AttentionMask.lengths(jnp.asarray([0, 2]))
    y, vjp = jax.vjp(lambda *qkv: dot_product_attention(*qkv, mask), Q, KEY, VALUE)
    np.testing.assert_allclose(y[0], np.broadcast_to(VALUE[0].mean(0), (L, H, K)), atol=1e-6)
    assert all(np.isfinite(g).all() for g in vjp(jnp.ones_like(y)))


def test_scores_beyond_the_range_of_exp_are_finite():
    y = dot_product_attention(jnp.asarray(Q) * 1e4, jnp.asarray(KEY) * 1e4, jnp.asarray(VALUE), AttentionMask.causal())
    assert np.isfinite(y).all()


def test_dropout_falls_on_the_weights():
    drop = Dropout(0.5, SEED)
    weights = dropout(attention_weights(jnp.asarray(Q), jnp.asarray(KEY)), *drop)
    assert 0 < (np.asarray(weights) == 0).sum() < weights.size
    y = dot_product_attention(jnp.asarray(Q), jnp.asarray(KEY), jnp.asarray(VALUE), dropout=drop)
    np.testing.assert_allclose(y, np.einsum("BHLS,BSHK->BLHK", weights, VALUE), atol=1e-6)


def test_bfloat16_computes_the_softmax_in_float32():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (Q, KEY, VALUE))
    assert attention_weights(q, k).dtype == jnp.float32
    y = dot_product_attention(q, k, v, MASKS["padding"])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), attention_oracle(Q, KEY, VALUE, MASKS["padding"]), atol=0.03)


# --- a block of queries at a time --------------------------------------------------------------------------------


def long_arrays(length, keys):
    draw = np.random.default_rng(3)
    return [jnp.asarray(draw.normal(size=(B, n, H, K)), jnp.float32) for n in (length, keys, keys)]


def long_masks(length, keys):
    draw = np.random.default_rng(4)
    padding = AttentionMask.padding(draw.integers(0, 2, (B, keys)) | (np.arange(keys) == 0))
    queries, packed = draw.integers(0, 3, (B, length)), draw.integers(0, 3, (B, keys))
    packed[:, :3] = [0, 1, 2]  # each segment has a key that is not behind any query
    return {
        "none": None,
        "padding, lengths, causal": padding & AttentionMask.lengths([5, keys]) & AttentionMask.causal(),
        "segments, causal at an offset": AttentionMask.segments(queries, packed) & AttentionMask.causal(jnp.int32(2)),
        "nothing": AttentionMask.lengths([0, 0]),
    }


@pytest.mark.parametrize("name", long_masks(1, 3))
@pytest.mark.parametrize(("length", "keys"), [(11, 13), (12, 12), (3, 13)], ids=["filled up", "even", "one block"])
def test_blocks_make_no_difference(length, keys, name, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 4)
    arrays, mask = long_arrays(length, keys), long_masks(length, keys)[name]
    g = jnp.asarray(np.random.default_rng(5).normal(size=arrays[0].shape), jnp.float32)

    def run(implementation):
        attend = functools.partial(dot_product_attention, implementation=implementation)
        y, vjp = jax.vjp(lambda *qkv: attend(*qkv, mask), *arrays)
        return y, *vjp(g)

    for plain, blocked in zip(*(jax.jit(run, static_argnums=0)(name) for name in ("xla", "blocked")), strict=True):
        np.testing.assert_allclose(blocked, plain, atol=2e-6)


def test_dropout_is_another_in_each_block_and_the_same_each_time(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)
    length, keys, rate = 32, 64, 0.25
    alike = jnp.zeros((B, length, H, keys))  # queries for which all keys weigh the same
    eye = jnp.broadcast_to(jnp.eye(keys)[None, :, None], (B, keys, H, keys))

    @jax.jit
    def run(g):
        drop = Dropout(rate, SEED)
        y, vjp = jax.vjp(lambda v: dot_product_attention(alike, v * 0, v, dropout=drop, implementation="blocked"), eye)
        return y, vjp(g)[0]

    g = jnp.asarray(np.random.default_rng(6).normal(size=alike.shape), jnp.float32)
    weights_BLHS, gradient = map(np.asarray, run(g))
    np.testing.assert_allclose(weights_BLHS[weights_BLHS > 0], 1 / keys / (1 - rate), rtol=1e-5)
    dropped = weights_BLHS == 0
    assert abs(dropped.mean() - rate) < 0.02
    first, second, *_ = np.split(dropped, 4, axis=1)
    assert abs((first == second).mean() - (rate**2 + (1 - rate) ** 2)) < 0.03
    # The same weights were dropped when the backward pass computed them again.
    np.testing.assert_allclose(gradient, np.einsum("BLHS,BLHK->BSHK", weights_BLHS, g), atol=1e-6)


def test_memory_grows_with_the_length_and_not_with_its_square(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 64)
    mask = AttentionMask.causal() & AttentionMask.segments(jnp.zeros((1, 2048), int))

    def bytes_of(length, implementation):
        def loss(q, k, v):
            y = dot_product_attention(
                q,
                k,
                v,
                mask.replace(query_segments_BL=ids, key_segments_BS=ids),
                dropout=Dropout(0.1, SEED),
                implementation=implementation,
            )
            return jnp.sum(y**2)

        ids = jnp.zeros((1, length), jnp.int32)
        x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    blocked = [bytes_of(length, "blocked") for length in (1024, 2048)]
    assert blocked[1] < 2.1 * blocked[0]
    assert blocked[1] < bytes_of(2048, "xla") / 8


# --- the choice of a kernel --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("cpu", jnp.bfloat16, (64, 64), None, None), "backend is cpu"),
        (("gpu", jnp.dtype("float32"), (64, 64), None, None), "not float32"),
        (("gpu", jnp.bfloat16, (264, 264), None, None), "not 264"),
        (("gpu", jnp.bfloat16, (12, 12), None, None), "not 12"),
        (("gpu", jnp.bfloat16, (16, 64), None, None), "keys have the size 16, but values 64"),
        (("gpu", jnp.bfloat16, (64, 64), None, Dropout(0.1, SEED)), "dropout"),
        (("gpu", jnp.bfloat16, (64, 64), MASKS["padding"], None), "neither causal nor a length"),
        (("gpu", jnp.bfloat16, (64, 64), MASKS["segments"], None), "neither causal nor a length"),
        (("gpu", jnp.bfloat16, (64, 64), MASKS["offset"], None), "position 0"),
        (("gpu", jnp.bfloat16, (64, 64), AttentionMask.causal(jnp.int32(0)), None), "position 0"),
    ],
)
def test_what_keeps_cudnn_away_is_said(arguments, reason):
    assert reason in _cudnn_obstacle(*arguments)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.dtype("bfloat16"), jnp.dtype("float16")])
@pytest.mark.parametrize("mask", [None, AttentionMask(), MASKS["causal"], MASKS["lengths"]])
def test_nothing_keeps_cudnn_away_from_what_it_can_do(dtype, mask):
    assert _cudnn_obstacle("gpu", dtype, (64, 64), mask, None) == ""
    assert _cudnn_obstacle("gpu", dtype, (64, 64), mask, Dropout(0.0, SEED)) == ""


def test_asking_for_cudnn_where_it_is_not_is_an_error():
    with pytest.raises(ValueError, match="cuDNN attention is not possible here: the backend is cpu"):
        dot_product_attention(Q, KEY, VALUE, implementation="cudnn")


def test_the_choice_is_logged_once(caplog):
    from transformer_jax.attention import _log_choice

    _log_choice.cache_clear()
    with caplog.at_level("INFO", "transformer_jax.attention"):
        for _ in range(2):
            dot_product_attention(jnp.asarray(Q), jnp.asarray(KEY), jnp.asarray(VALUE))
    assert [r.getMessage() for r in caplog.records] == ["attention: xla (the backend is cpu)"]


def test_long_texts_are_taken_in_blocks(caplog, monkeypatch):
    attention._log_choice.cache_clear()
    monkeypatch.setattr(attention, "BLOCKED_FROM", L * S)
    q, k, v = map(jnp.asarray, (Q, KEY, VALUE))
    with caplog.at_level("INFO", "transformer_jax.attention"):
        blocked = jax.make_jaxpr(dot_product_attention)(q, k, v)
        plain = jax.make_jaxpr(dot_product_attention)(q[:, 1:], k, v)
    assert ("scan" in str(blocked), "scan" in str(plain)) == (True, False)
    assert [r.getMessage() for r in caplog.records] == [
        "attention: blocked (the backend is cpu, and queries times keys are at least 12)",
        "attention: xla (the backend is cpu)",
    ]


# --- the layer ---------------------------------------------------------------------------------------------------


@functools.cache
def layer(bias=True, head_dim=None, dtype=jnp.float32, key_dim=None):
    """The layer and its parameters for self- and cross-attention, biases drawn so that they matter."""
    module = MultiHeadAttention(D, H, head_dim, use_bias=bias, dtype=dtype, key_dim=key_dim)
    key = jax.random.key(0)
    params = module.init(key, jnp.asarray(X))["params"] | module.init(key, jnp.asarray(X), memory=MEMORY)["params"]
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(5)
    return module, tree.unflatten([jnp.asarray(draw.normal(size=x.shape) * 0.4, jnp.float32) for x in leaves])


def project(params, x, equation):
    y = np.einsum(equation, x.astype(np.float64), np.asarray(params["kernel"], np.float64))
    return y + np.asarray(params["bias"], np.float64) if "bias" in params else y


def layer_oracle(params, x, memory, mask):
    if "key" in params:  # which have a size of their own
        sides = {"query": x, "key": x if memory is None else memory, "value": x if memory is None else memory}
        q, k, v = (project(params[name], side, "BLD,DHK->BLHK") for name, side in sides.items())
    elif memory is None:
        q, k, v = np.moveaxis(project(params["qkv"], x, "BLD,DCHK->BLCHK"), 2, 0)
    else:
        q = project(params["query"], x, "BLD,DHK->BLHK")
        k, v = np.moveaxis(project(params["key_value"], memory, "BLD,DCHK->BLCHK"), 2, 0)
    return project(params["out"], attention_oracle(q, k, v, mask), "BLHK,HKD->BLD")


@pytest.mark.parametrize(("bias", "head_dim", "key_dim"), [(True, None, None), (False, 3, None), (True, 3, 5)])
@pytest.mark.parametrize("memory", [None, MEMORY], ids=["self", "cross"])
def test_the_layer_is_its_definition(bias, head_dim, key_dim, memory):
    module, params = layer(bias, head_dim, key_dim=key_dim)
    mask = MASKS["causal"] if memory is None else MASKS["padding"]
    y, cache = jax.jit(module.apply)({"params": params}, jnp.asarray(X), mask, memory=memory)
    assert cache is None
    np.testing.assert_allclose(y, layer_oracle(params, X, memory, mask), atol=2e-5)
    assert all(("bias" in p) == bias for p in params.values())


def test_the_weights_of_the_layer_are_those_it_uses():
    module, params = layer()
    q, k, _ = np.moveaxis(project(params["qkv"], X, "BLD,DCHK->BLCHK"), 2, 0)
    mask = MASKS["causal"]
    weights = module.apply({"params": params}, jnp.asarray(X), mask, method="weights")
    np.testing.assert_allclose(weights, softmax_oracle(q, k, mask.dense(L, L)), atol=1e-5)


@pytest.mark.parametrize(("pieces", "key_dim"), [([1, 1, 1], None), ([2, 1], 5), ([3], None)])
def test_a_cache_makes_no_difference(pieces, key_dim):
    module, params = layer(key_dim=key_dim)
    mask = AttentionMask.lengths(jnp.asarray([3, 2]))
    whole, _ = module.apply({"params": params}, jnp.asarray(X), AttentionMask.causal() & mask)
    cache, start, parts = KVCache.empty(B, 5, H, D // H, key_dim=key_dim), 0, []
    for piece in pieces:
        x = jnp.asarray(X[:, start : start + piece])
        y, cache = module.apply({"params": params}, x, mask, cache=cache)
        start += piece
        parts.append(y)
        assert int(cache.length) == start
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-5)


def test_what_an_unfilled_cache_holds_does_not_matter():
    module, params = layer()
    empty = KVCache.empty(B, 5, H, D // H)
    dirty = KVCache(empty.key_BHSK + 7.0, empty.value_BHSK - 5.0, empty.length)
    run = jax.jit(lambda cache: module.apply({"params": params}, jnp.asarray(X), cache=cache)[0])
    np.testing.assert_array_equal(run(empty), run(dirty))


def test_beams_share_the_memory_of_their_sentence():
    module, params = layer()
    beams = np.random.default_rng(9).normal(size=(3 * B, 1, D)).astype(np.float32)
    apply = functools.partial(module.apply, {"params": params}, jnp.asarray(beams))
    shared, _ = apply(MASKS["padding"], memory=MEMORY)
    repeated_mask = AttentionMask.padding(jnp.repeat(MASKS["padding"].key_mask_BS, 3, axis=0))
    repeated, _ = apply(repeated_mask, memory=np.repeat(MEMORY, 3, axis=0))
    np.testing.assert_allclose(shared, repeated, atol=1e-6)
    projected = module.apply({"params": params}, MEMORY, method="project_memory")
    assert projected.key_BHSK.shape == (B, H, S, D // H)
    np.testing.assert_array_equal(apply(MASKS["padding"], memory=projected)[0], shared)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_that_does_not_fit_the_memory_is_refused(rows):
    module, params = layer()
    with pytest.raises(ValueError, match="2"):
        module.apply({"params": params}, jnp.ones((rows, 2, D)), memory=MEMORY)


def test_the_layer_runs_in_bfloat16():
    module, params = layer(dtype=jnp.bfloat16)
    for memory in (None, MEMORY):
        y, _ = module.apply({"params": params}, jnp.asarray(X), memory=memory)
        assert y.dtype == jnp.bfloat16
        expected = layer_oracle(params, X, memory, None)
        np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.03 * np.abs(expected).max())


def test_the_layer_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="3 heads do not divide the width 8"):
        MultiHeadAttention(D, 3).init(jax.random.key(0), jnp.asarray(X))
    module, params = layer()
    with pytest.raises(ValueError, match="a cache is for self-attention"):
        module.apply({"params": params}, jnp.asarray(X), memory=MEMORY, cache=KVCache.empty(B, 5, H, D // H))
