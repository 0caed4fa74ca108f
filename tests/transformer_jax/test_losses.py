import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import cross_entropy

V = 7
rng = np.random.default_rng(0)
LOGITS = (3 * rng.normal(size=(2, 5, V))).astype(np.float32)
LABELS = rng.integers(0, V, (2, 5))
WEIGHTS = np.array([[1, 1, 0, 1, 0], [0, 1, 0.5, 1, 1]], np.float32)


def oracle(logits, labels, weights, smoothing, z_loss):
    """The definition: a smoothed one-hot target against the log-softmax, position by position."""
    total = 0.0
    for index in np.ndindex(labels.shape):
        z = logits[index].astype(np.float64)
        log_z = np.log(np.exp(z - z.max()).sum()) + z.max()
        target = np.full(V, smoothing / V)
        target[labels[index]] += 1 - smoothing
        total += weights[index] * (-(target * (z - log_z)).sum() + z_loss * log_z**2)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_cross_entropy_is_its_definition(smoothing, z_loss):
    for weights in (None, WEIGHTS):
        total, weight = cross_entropy(
            jnp.asarray(LOGITS), jnp.asarray(LABELS), weights, label_smoothing=smoothing, z_loss=z_loss
        )
        used = np.ones(LABELS.shape) if weights is None else weights
        assert total.dtype == weight.dtype == jnp.float32 and total.shape == weight.shape == ()
        np.testing.assert_allclose(total, oracle(LOGITS, LABELS, used, smoothing, z_loss), rtol=1e-5)
        np.testing.assert_allclose(weight, used.sum())


def test_boolean_weights_count_as_ones():
    chosen = WEIGHTS > 0
    for a, b in zip(
        cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(chosen)),
        cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(chosen, jnp.float32)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.02)])
def test_the_gradient_is_softmax_minus_target(smoothing, z_loss):
    def loss(logits):
        return cross_entropy(logits, jnp.asarray(LABELS), WEIGHTS, label_smoothing=smoothing, z_loss=z_loss)[0]

    z = LOGITS.astype(np.float64)
    softmax = np.exp(z - z.max(-1, keepdims=True))
    log_z = np.log(softmax.sum(-1, keepdims=True)) + z.max(-1, keepdims=True)
    softmax /= softmax.sum(-1, keepdims=True)
    target = (1 - smoothing) * np.eye(V)[LABELS] + smoothing / V
    expected = WEIGHTS[..., None] * (softmax - target + 2 * z_loss * log_z * softmax)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(LOGITS)), expected, atol=1e-6)


def test_logits_of_any_size_and_type_are_finite():
    huge = jnp.asarray(LOGITS) * 1e30
    total, _ = cross_entropy(huge, jnp.argmax(huge, -1), label_smoothing=0.0)
    assert float(total) == 0.0
    half, _ = cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), jnp.asarray(LABELS))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(
        half,
        oracle(np.asarray(jnp.asarray(LOGITS, jnp.bfloat16), np.float64), LABELS, np.ones((2, 5)), 0, 0),
        rtol=1e-5,
    )


def test_labels_without_weight_may_be_anything():
    """-100 marks positions without a label in Hugging Face's batches."""
    labels = np.where(WEIGHTS > 0, LABELS, -100)
    loss = jax.value_and_grad(lambda logits, labels: cross_entropy(logits, labels, WEIGHTS)[0])
    for a, b in zip(loss(jnp.asarray(LOGITS), labels), loss(jnp.asarray(LOGITS), LABELS), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_torch(smoothing):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS).reshape(-1, V),
        torch.from_numpy(LABELS).reshape(-1),
        label_smoothing=smoothing,
        reduction="sum",
    )
    ours, _ = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), label_smoothing=smoothing)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)


@pytest.mark.parametrize("wrong", [-1, V, 2**31 - 1, -100])
def test_a_label_that_counts_and_is_out_of_range_is_refused_or_nan(wrong):
    labels = LABELS.copy()
    labels[1, 3] = wrong
    with pytest.raises(ValueError, match=f"labels must lie between 0 and 6 .*: 1 of 7 do not, such as {wrong}"):
        cross_entropy(jnp.asarray(LOGITS), labels, WEIGHTS)
    total, weight = jax.jit(cross_entropy)(LOGITS, labels, WEIGHTS)
    assert np.isnan(total) and weight == WEIGHTS.sum()
    assert np.isfinite(jax.jit(cross_entropy)(LOGITS, np.where(WEIGHTS > 0, LABELS, wrong), WEIGHTS)[0])


def test_labels_of_a_small_type_are_labels():
    wide = jnp.concatenate([jnp.asarray(LOGITS)] * 50, axis=-1)  # 350 words, more than int8 holds
    expected = cross_entropy(wide, jnp.asarray(LABELS))
    for kind in ("int8", "uint8", "uint32"):
        np.testing.assert_array_equal(cross_entropy(wide, LABELS.astype(kind)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[
            ({"label_smoothing": e}, "label_smoothing must be a number from 0 below 1")
            for e in (np.nan, 2, 1, -1, "0.1")
        ],
        *[({"z_loss": z}, "z_loss must be a number from 0") for z in (np.nan, -1e-4, np.inf)],
        ({"labels": LABELS[:, :1]}, r"labels must have the shape \[2, 5\], as logits ask, not \[2, 1\]"),
        ({"labels": LABELS.astype(float)}, "labels must be integers, not float64"),
        ({"labels": np.eye(V)[LABELS]}, r"labels must have the shape \[2, 5\]"),
        ({"weights": WEIGHTS[:1]}, r"weights must have the shape \[2, 5\], as logits ask, not \[1, 5\]"),
        *[({"weights": np.full((2, 5), w)}, "weights must be finite and not negative") for w in (-1, np.nan, np.inf)],
        ({"logits": LOGITS.astype(int)}, "logits must be floating-point numbers, not int64"),
    ],
)
def test_cross_entropy_refuses_what_has_no_meaning(arguments, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(**{"logits": LOGITS, "labels": LABELS, "weights": WEIGHTS, **arguments})
