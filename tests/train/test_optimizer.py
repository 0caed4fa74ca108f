"""Schedules by formula, decay masks and matrix axes on real-looking trees, and each optimizer at work."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.errors import InputError
from train.optimizer import OptimizerConfig, _muon_axes, decay_mask, make_optimizer, make_schedule

D, H, K, F = 8, 2, 4, 16


def layer(make, *lead):
    return {
        "attention": {
            "qkv": {"kernel": make(*lead, D, 3, H, K), "bias": make(*lead, 3, H, K)},
            "out": {"kernel": make(*lead, H, K, D), "bias": make(*lead, D)},
            "norm": {"scale": make(*lead, D), "bias": make(*lead, D)},
        },
        "mlp": {
            "up": {"kernel": make(*lead, D, F), "bias": make(*lead, F)},
            "out": {"kernel": make(*lead, F, D), "bias": make(*lead, D)},
        },
    }


def real_tree(seed=0):
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "embeddings": {"word": {"embedding": make(11, D)}, "norm": {"scale": make(D), "bias": make(D)}},
        "encoder": {"layer_0": layer(make), "layer_1": layer(make)},
        "pooler": {"kernel": make(D, D), "bias": make(D)},
        "head": {"bias": make(11)},
    }


def stacked(tree):
    layers = jax.tree.map(lambda *xs: jnp.stack(xs), tree["encoder"]["layer_0"], tree["encoder"]["layer_1"])
    return {**tree, "encoder": {"layers": layers}}


def test_decay_reaches_kernels_and_tables_only():
    for tree in (real_tree(), stacked(real_tree())):
        mask = jax.tree_util.tree_flatten_with_path(decay_mask(tree))[0]
        decayed = {jax.tree_util.keystr(path, simple=True, separator="/") for path, on in mask if on}
        assert all(name.endswith(("/kernel", "/embedding")) for name in decayed)
        assert {"embeddings/word/embedding", "pooler/kernel"} <= decayed
        assert len(mask) - len(decayed) == sum(
            jax.tree_util.keystr(path, simple=True, separator="/").endswith(("/bias", "/scale")) for path, _ in mask
        )


@pytest.mark.parametrize(
    ("path", "ndim", "axes"),
    [
        ("encoder/layer_0/attention/qkv/kernel", 4, ([0], [2, 3])),
        ("encoder/layer_0/attention/query/kernel", 3, ([0], [1, 2])),
        ("encoder/layer_0/attention/out/kernel", 3, ([0, 1], [2])),
        ("encoder/layer_0/mlp/out/kernel", 2, ([0], [1])),
        ("encoder/layers/attention/qkv/kernel", 5, ([1], [3, 4])),
        ("encoder/layers/attention/out/kernel", 4, ([1, 2], [3])),
        ("encoder/layers/mlp/up/kernel", 3, ([1], [2])),
        ("encoder/layers/mlp/up/bias", 2, None),
        ("embeddings/word/embedding", 2, None),
        ("pooler/kernel", 2, None),
    ],
)
def test_muon_sees_matrices_inside_layers(path, ndim, axes):
    found = _muon_axes(path.split("/"), ndim)
    assert (found and tuple(map(list, found))) == axes


def test_schedules_follow_their_formulas():
    peak, warmup, steps = 3e-3, 10, 50
    for name in ("linear", "cosine", "inverse-square-root"):
        config = OptimizerConfig(learning_rate=peak, schedule=name, warmup_steps=warmup)
        schedule = make_schedule(config, steps)
        for step in (0, 3, 9, 10, 11, 30, 49, 50):
            done = (step - warmup) / (steps - warmup)
            after = {
                "linear": 1 - done,
                "cosine": (1 + math.cos(math.pi * done)) / 2,
                "inverse-square-root": math.sqrt(warmup / (step + 1)),
            }[name]
            expected = peak * ((step + 1) / warmup if step < warmup else after)
            np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-9)
        assert schedule(0) > 0 and schedule(warmup - 1) == pytest.approx(peak) and schedule(steps - 1) > 0


def test_schedule_without_warmup_and_with_one_longer_than_the_run():
    assert make_schedule(OptimizerConfig(learning_rate=1e-4), 10)(0) == pytest.approx(1e-4)
    assert make_schedule(OptimizerConfig(learning_rate=1e-4, warmup_steps=100), 5)(4) == pytest.approx(5e-6)


def test_first_adamw_step_equals_the_formula():
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, clip_norm=1.0, warmup_steps=4)
    params, grads = real_tree(0), real_tree(1)
    optimizer = make_optimizer(config, 10, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)

    flat64 = lambda tree: [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]  # noqa: E731
    norm = math.sqrt(sum((g**2).sum() for g in flat64(grads)))
    assert norm > 1
    for p, g, decayed, new in zip(
        flat64(params), flat64(grads), jax.tree.leaves(decay_mask(params)), flat64(moved), strict=True
    ):
        g = g / norm
        m_hat, v_hat = (0.1 * g) / (1 - 0.9), (0.001 * g**2) / (1 - 0.999)
        expected = p - 1e-2 / 4 * (m_hat / (np.sqrt(v_hat) + 1e-6) + 0.1 * decayed * p)
        np.testing.assert_allclose(new, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "muon"])
def test_loss_falls_and_both_layouts_agree(name):
    config = OptimizerConfig(name=name, learning_rate=0.03, weight_decay=0.01)
    target = real_tree(1)

    def run(params, target):
        optimizer = make_optimizer(config, 30, jax.eval_shape(lambda: params))
        loss = lambda p: 0.5 * optax.tree.norm(optax.tree.sub(p, target), squared=True)  # noqa: E731

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=30))(params)
        return params, np.asarray(losses)

    unrolled, losses = run(real_tree(0), target)
    scanned, _ = run(stacked(real_tree(0)), stacked(target))
    assert losses[-1] < 0.9 * losses[0] and (np.diff(losses) < 0).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), stacked(unrolled), scanned)


def test_muon_update_is_near_orthogonal_for_each_projection():
    config = OptimizerConfig(name="muon", learning_rate=1.0, weight_decay=0.0, clip_norm=0.0)
    params, grads = real_tree(0), real_tree(1)
    optimizer = make_optimizer(config, 10, params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    qkv = np.asarray(updates["encoder"]["layer_0"]["attention"]["qkv"]["kernel"])
    for n in range(3):
        singular = np.linalg.svd(qkv[:, n].reshape(D, H * K), compute_uv=False) / (0.2 * math.sqrt(max(D, H * K)))
        assert singular.min() > 0.2 and singular.max() < 1.4
    # Outside the layers Adam's first step moves every entry by the learning rate.
    np.testing.assert_allclose(np.abs(updates["pooler"]["kernel"]), 1.0, atol=1e-2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("learning_rate", -1.0), ("learning_rate", math.nan), ("warmup_steps", -1), ("weight_decay", -0.1)],
        *[("beta1", 1.0), ("beta2", -0.1), ("epsilon", 0.0), ("clip_norm", -1.0), ("decay_steps", 0)],
    ],
)
def test_bad_values_name_their_option(field, value):
    config = dataclasses.replace(OptimizerConfig(learning_rate=1e-4), **{field: value})
    with pytest.raises(InputError, match=f"--optimizer.{field.replace('_', '-')} must be .*not {value}"):
        make_optimizer(config, 10, real_tree())


def test_muon_needs_layers():
    with pytest.raises(InputError, match=r"--optimizer\.name: muon"):
        make_optimizer(OptimizerConfig(name="muon", learning_rate=1e-4), 10, {"pooler": {"kernel": jnp.zeros((2, 2))}})


def test_warmup_stable_decay_is_its_formula_and_its_past_does_not_depend_on_its_end():
    config = OptimizerConfig(learning_rate=2.0, schedule="warmup-stable-decay", warmup_steps=4, decay_steps=5)
    got = make_schedule(config, 20)(np.arange(20))
    want = [0.5, 1.0, 1.5, *[2.0] * 12, *(2.0 * (20 - s) / 5 for s in range(15, 20))]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(make_schedule(config, 50)(np.arange(16)), got[:16])
    tenth = make_schedule(dataclasses.replace(config, decay_steps=None), 20)(np.arange(20))
    np.testing.assert_allclose(tenth[-3:], [2.0, 2.0, 1.0], rtol=1e-6)
    with pytest.raises(InputError, match="--optimizer.decay-steps 5 has no meaning for --optimizer.schedule cosine"):
        make_schedule(dataclasses.replace(config, schedule="cosine"), 20)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_layer_decay_is_a_power_of_the_distance_from_the_top(name):
    tree, grads = real_tree(), real_tree(1)
    plain, decayed = (
        make_optimizer(OptimizerConfig(name=name, learning_rate=0.1, layer_decay=decay), 10, tree)
        for decay in (1.0, 0.5)
    )
    full, less = (optimizer.update(grads, optimizer.init(tree), tree)[0] for optimizer in (plain, decayed))
    powers = {"embeddings": 3, "layer_0": 2, "layer_1": 1, "pooler": 0, "head": 0}
    for path, update in jax.tree_util.tree_leaves_with_path(full):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        power = next(powers[part] for part in names if part in powers)
        np.testing.assert_allclose(_at(less, names), update * 0.5**power, rtol=1e-6)
    both, stacks = (
        stacked(tree),
        make_optimizer(OptimizerConfig(name=name, learning_rate=0.1, layer_decay=0.5), 10, stacked(tree)),
    )
    update = stacks.update(stacked(grads), stacks.init(both), both)[0]
    # As far apart as the two layouts are without decay: Newton-Schulz in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), update, stacked(less))


def _at(tree, names):
    for name in names:
        tree = tree[name]
    return tree


def test_layer_decay_needs_layers():
    tree = {"pooler": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(InputError, match="--optimizer.layer-decay: the model has no layers"):
        make_optimizer(OptimizerConfig(learning_rate=0.1, layer_decay=0.9), 10, tree)


def test_warm_up_is_a_tenth_of_the_steps_where_asked_for():
    given, tenth = (make_schedule(OptimizerConfig(learning_rate=0.1, warmup_steps=warmup), 40) for warmup in (4, None))
    np.testing.assert_array_equal(given(np.arange(40)), tenth(np.arange(40)))
