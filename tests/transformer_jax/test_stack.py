import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import (
    AttentionMask,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    StackConfig,
    Transformer,
    TransformerConfig,
    stack_layers,
    unstack_layers,
)
from transformer_jax.stack import REMAT_POLICIES

D, H, F = 8, 2, 12
rng = np.random.default_rng(0)
X = rng.normal(size=(2, 3, D)).astype(np.float32)
MEMORY = rng.normal(size=(2, 4, D)).astype(np.float32)
MASK = AttentionMask.lengths(jnp.asarray([3, 2]))
SEED = jnp.asarray([5, 6], jnp.uint32)
RATES = ("dropout_rate", "attention_dropout_rate", "activation_dropout_rate")


def config(**options):
    return StackConfig(**{"num_layers": 2, "features": D, "num_heads": H, "mlp_dim": F, "dropout_rate": 0.0, **options})


def draw(shapes, seed=1):
    """Parameters of the given shapes, biases and scales included, so that each one matters."""
    leaves, tree = jax.tree.flatten(shapes)
    values = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(values.normal(size=x.shape) * 0.5, jnp.float32) for x in leaves])


@functools.cache
def stack_params(kind, norm):
    args = (X,) if kind is Encoder else (X, MEMORY)
    return draw(jax.eval_shape(kind(config(norm=norm)).init, jax.random.key(0), *args)["params"])


def run(kind, options, params):
    """Output and gradient of a scalar of it, with dropout wherever the options ask for it."""
    module = kind(config(**options))
    args = (MASK,) if kind is Encoder else (MEMORY, AttentionMask.causal(), None)

    def loss(params, x):
        y = module.apply({"params": params}, x, *args, deterministic=False, rngs={"dropout": jax.random.key(7)})
        y = y if kind is Encoder else y[0]
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(X))
    return y, gradients


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), a, b)


# --- one meaning, several ways of running ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    """What a stack with all kinds of dropout gives when nothing is scanned or computed again."""
    return functools.cache(lambda kind: run(kind, DROPS, stack_params(kind, "pre")))


DROPS = {"norm": "pre"} | dict.fromkeys(RATES, 0.3)


@pytest.mark.parametrize(
    ("kind", "remat"), [*((Encoder, remat) for remat in REMAT_POLICIES), (Decoder, "none"), (Decoder, "full")]
)
def test_scanning_gives_the_same_with_every_remat_policy(kind, remat, plain):
    """Outputs, gradients and, since elements are dropped, the bits that dropped them."""
    y, (of_params, of_x) = run(
        kind, {**DROPS, "scan_layers": True, "remat": remat}, stack_layers(stack_params(kind, "pre"))
    )
    assert_close((y, (unstack_layers(of_params), of_x)), plain(kind))


def test_remat_changes_nothing_when_unrolled(plain):
    assert_close(run(Encoder, {**DROPS, "remat": "full"}, stack_params(Encoder, "pre")), plain(Encoder))


def test_the_oracle_of_these_tests_drops_something(plain):
    without = run(Encoder, {"norm": "pre"}, stack_params(Encoder, "pre"))[0]
    assert np.abs(without - plain(Encoder)[0]).max() > 0.1


def test_remat_computes_again():
    """The backward pass of a layer that keeps nothing holds the forward pass once more."""

    def products(remat):
        module = Encoder(config(remat=remat, num_layers=1))
        params = unstack_layers({"layers": jax.tree.map(lambda x: x[None], stack_params(Encoder, "post")["layer_0"])})
        text = str(jax.make_jaxpr(jax.grad(lambda p: module.apply({"params": p}, X).sum()))(params))
        return text.count("dot_general")

    assert products("full") > products("none")


def test_stacking_layers_can_be_undone():
    shapes = jax.eval_shape(
        Transformer(TransformerConfig.tiny(5, features=8, num_heads=2, mlp_dim=4, decoder_layers=3)).init,
        jax.random.key(0),
        jnp.zeros((1, 1), int),
        jnp.zeros((1, 1), int),
    )["params"]
    params = draw(shapes)
    stacked = stack_layers(params)
    assert set(stacked["decoder"]) == {"layers", "norm"}
    np.testing.assert_array_equal(
        stacked["decoder"]["layers"]["mlp"]["up"]["bias"][2], params["decoder"]["layer_2"]["mlp"]["up"]["bias"]
    )
    back = unstack_layers(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert jax.tree.structure(stack_layers(stacked)) == jax.tree.structure(stacked)


def test_twelve_layers_keep_their_order_when_stacked():
    params = {f"layer_{i}": {"x": jnp.full((1,), i)} for i in reversed(range(12))}
    np.testing.assert_array_equal(stack_layers(params)["layers"]["x"][:, 0], np.arange(12))


@pytest.mark.parametrize("scan", [False, True])
def test_decoding_with_cache_and_projected_memory_is_decoding_at_once(scan):
    module = Decoder(config(norm="pre", scan_layers=scan))
    params = stack_params(Decoder, "pre")
    variables = {"params": stack_layers(params) if scan else params}
    whole, none = jax.jit(module.apply)(variables, X, MEMORY, AttentionMask.causal(), MASK)
    assert none is None
    memory = jax.jit(lambda: module.apply(variables, MEMORY, method="project_memory"))()
    step = jax.jit(lambda x, cache: module.apply(variables, x, memory, None, MASK, cache=cache))
    cache, parts = module.empty_cache(2, 5), []
    for i in range(X.shape[1]):
        y, cache = step(X[:, i : i + 1], cache)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-5)


# --- the layer against NumPy -------------------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "swish": lambda x: x / (1 + np.exp(-x)),
}


def norm_oracle(p, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


OF_ROWS = (np.arange(3)[None, :] < np.array([3, 2])[:, None])[:, None, :]


def attention_oracle(p, x, memory, allowed, seen=None):
    """One head after the other; `allowed` is boolean [B, L, S]. The weights [B, H, L, S] are put into `seen`."""
    if memory is None:
        q, k, v = np.moveaxis(np.einsum("BLD,DCHK->BLCHK", x, p["qkv"]["kernel"]) + p["qkv"]["bias"], 2, 0)
    else:
        q = np.einsum("BLD,DHK->BLHK", x, p["query"]["kernel"]) + p["query"]["bias"]
        kv = np.einsum("BLD,DCHK->BLCHK", memory, p["key_value"]["kernel"]) + p["key_value"]["bias"]
        k, v = kv[:, :, 0], kv[:, :, 1]
    weights = [weights_oracle(q[:, :, h], k[:, :, h], allowed) for h in range(H)]
    if seen is not None:
        seen.append(np.stack(weights, 1))
    return sum(weights[h] @ v[:, :, h] @ p["out"]["kernel"][h] for h in range(H)) + p["out"]["bias"]


def weights_oracle(q, k, allowed):
    """Of one head."""
    scores = np.where(allowed, q @ k.swapaxes(1, 2) / math.sqrt(D // H), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def layer_oracle(params, x, memory, norm, activation, seen=None):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = x.astype(np.float64)
    causal = np.tril(np.ones((3, 3), bool))[None]

    def mlp(h):
        h = ACTIVATIONS[activation](h @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"])
        return h @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]

    if memory is None:
        sublayers = [("attention_norm", lambda h: attention_oracle(p["attention"], h, None, OF_ROWS))]
    else:
        sublayers = [
            ("self_attention_norm", lambda h: attention_oracle(p["self_attention"], h, None, causal)),
            ("cross_attention_norm", lambda h: attention_oracle(p["cross_attention"], h, memory, np.array(True), seen)),
        ]
    for name, sublayer in [*sublayers, ("mlp_norm", mlp)]:
        x = x + sublayer(norm_oracle(p[name], x)) if norm == "pre" else norm_oracle(p[name], x + sublayer(x))
    return x


@pytest.mark.parametrize(("norm", "activation"), [*(("pre", name) for name in ACTIVATIONS), ("post", "swish")])
def test_the_encoder_layer_is_its_definition(norm, activation):
    module = EncoderLayer(config(norm=norm, activation=activation))
    params = stack_params(Encoder, norm)["layer_0"]
    y = jax.jit(module.apply)({"params": params}, X, MASK)
    np.testing.assert_allclose(y, layer_oracle(params, X, None, norm, activation), atol=2e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_decoder_layer_is_its_definition(norm):
    module = DecoderLayer(config(norm=norm))
    params = stack_params(Decoder, norm)["layer_0"]
    y, cache = jax.jit(module.apply)({"params": params}, X, MEMORY, AttentionMask.causal())
    assert cache is None
    np.testing.assert_allclose(y, layer_oracle(params, X, MEMORY.astype(np.float64), norm, "relu"), atol=2e-5)


@pytest.mark.parametrize(("norm", "scan"), [("pre", True), ("post", False)])
def test_a_decoder_says_what_its_layers_attend_to(norm, scan):
    params, x, seen = stack_params(Decoder, norm), X, []
    for i in range(2):
        x = layer_oracle(params[f"layer_{i}"], x, MEMORY.astype(np.float64), norm, "relu", seen)
    module = Decoder(config(norm=norm, scan_layers=scan))
    variables = {"params": stack_layers(params) if scan else params}
    found = jax.jit(functools.partial(module.apply, method="cross_attentions"))(
        variables, X, MEMORY, AttentionMask.causal()
    )
    np.testing.assert_allclose(found, seen, atol=5e-5)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_stack_is_its_layers_one_after_the_other(norm, scan):
    params = stack_params(Encoder, norm)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    states, weights = [X], []
    for i in range(2):
        p = exact[f"layer_{i}"]
        x = norm_oracle(p["attention_norm"], states[-1]) if norm == "pre" else states[-1]
        q, k = (np.einsum("BLD,DHK->HBLK", x, p["attention"]["qkv"]["kernel"][:, c]) for c in (0, 1))
        q, k = (y + p["attention"]["qkv"]["bias"][c][:, None, None] for c, y in ((0, q), (1, k)))
        weights.append(np.stack([weights_oracle(q[h], k[h], OF_ROWS) for h in range(H)], 1))
        states.append(layer_oracle(p, states[-1], None, norm, "relu"))
    if norm == "pre":
        states[-1] = norm_oracle(exact["norm"], states[-1])
    module = Encoder(config(norm=norm, scan_layers=scan, remat="full" if scan else "none"))
    params = stack_layers(params) if scan else params
    asked = {"hidden_states": True, "attentions": True}
    out = jax.jit(lambda p: module.apply({"params": p}, X, MASK, method=module.states, **asked))(params)
    for found, expected in zip((*out.hidden_states, *out.attentions), (*states, *weights), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-5)
    np.testing.assert_array_equal(out.output, out.hidden_states[-1])
    alone = jax.jit(module.apply)({"params": params}, X, MASK)
    np.testing.assert_allclose(alone, states[-1], atol=5e-5)


# --- where dropout is --------------------------------------------------------------------------------------------


def silenced(params, *names):
    """The parameters with the last product of the named sublayers set to 0, bias and all."""
    quiet = {
        name: {**params[name], part: jax.tree.map(jnp.zeros_like, params[name][part])}
        for name in names
        for part in ({"out", "down"} & set(params[name]))
    }
    return {**params, **quiet}


@functools.cache
def compiled_layer(kind, rate):
    layer = kind(config(norm="pre", **({rate: 0.5} if rate else {})))
    if kind is EncoderLayer:
        return jax.jit(lambda params, seed: layer.apply({"params": params}, X, MASK, seed=seed))
    mask = AttentionMask.causal()
    return jax.jit(lambda params, seed: layer.apply({"params": params}, X, MEMORY, mask, seed=seed)[0])


@pytest.mark.parametrize(
    ("kind", "audible"),
    [
        (EncoderLayer, "attention"),
        (EncoderLayer, "mlp"),
        (DecoderLayer, "self_attention"),
        (DecoderLayer, "cross_attention"),
        (DecoderLayer, "mlp"),
    ],
)
@pytest.mark.parametrize("rate", RATES)
def test_each_rate_falls_on_its_own_sublayers(rate, kind, audible):
    """Raised alone, with only one sublayer that says anything: it is heard, or the output is the same."""
    stack, names = (
        (Encoder, {"attention", "mlp"})
        if kind is EncoderLayer
        else (Decoder, {"self_attention", "cross_attention", "mlp"})
    )
    params = silenced(stack_params(stack, "pre")["layer_0"], *(names - {audible}))
    heard = rate == "dropout_rate" or (rate == "activation_dropout_rate") == (audible == "mlp")
    difference = np.abs(compiled_layer(kind, rate)(params, SEED) - compiled_layer(kind, None)(params, SEED)).max()
    assert difference > 0.05 if heard else difference < 1e-6


def test_the_residual_is_dropped_before_it_is_added():
    """Behind the sublayer and before the sum: what comes in along the residual is never dropped."""
    params = silenced(stack_params(Encoder, "pre")["layer_0"], "mlp")
    added = np.asarray(compiled_layer(EncoderLayer, "dropout_rate")(params, SEED)) - X
    whole = np.asarray(compiled_layer(EncoderLayer, None)(params, SEED)) - X
    dropped = np.abs(added) < 1e-6
    assert 0.2 < dropped.mean() < 0.8
    np.testing.assert_allclose(added[~dropped], 2 * whole[~dropped], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_each_layer_drops_other_elements(scan):
    """Layers that only add a bias of 1: each element gains 2 wherever a layer did not drop it."""
    layer = silenced(stack_params(Encoder, "pre")["layer_0"], "attention", "mlp")
    layer["attention"]["out"]["bias"] = jnp.ones(D)
    params = {"layer_0": layer, "layer_1": layer, "norm": {"scale": jnp.ones(D), "bias": jnp.zeros(D)}}
    module = Encoder(config(norm="pre", num_layers=2, dropout_rate=0.5, scan_layers=scan))
    # The last norm would hide the sum: a large step makes three distinct values, 0, 2 and 4, of each element.
    y = module.apply(
        {"params": stack_layers(params) if scan else params},
        jnp.zeros((4, 8, D)),
        deterministic=False,
        rngs={"dropout": jax.random.key(0)},
    )
    values = [len(np.unique(np.asarray(row).round(4))) for row in y.reshape(-1, D)]
    assert max(values) == 3  # with the same bits in both layers there could be only two, 0 and 4


# --- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "3 heads do not divide the width 8"),
        ({"num_layers": 0}, "num_layers must be an integer from 1 to 10000, not 0"),
        ({"activation": "tanh"}, "activation must be 'relu', 'gelu', 'gelu_new' or 'swish', not 'tanh'"),
        ({"norm": "middle"}, "norm must be 'pre' or 'post', not 'middle'"),
        ({"remat": "most"}, "remat must be .*, not 'most'"),
        *[
            ({rate: value}, f"{rate} must be a number from 0 below 1, not {value}")
            for rate in RATES
            for value in (-0.1, 1.0)
        ],
    ],
)
def test_a_stack_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_a_head_size_of_its_own_need_not_divide_the_width():
    shapes = jax.eval_shape(Encoder(config(num_heads=3, head_dim=5)).init, jax.random.key(0), X)["params"]
    assert shapes["layer_0"]["attention"]["qkv"]["kernel"].shape == (D, 3, 3, 5)


def test_dropout_needs_a_key():
    import flax

    with pytest.raises(flax.errors.InvalidRngError):
        Encoder(config()).apply({"params": stack_params(Encoder, "post")}, X, deterministic=False)
