"""Cross entropy as (sum, weight) pairs, so that batches of any make-up can be added before dividing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.checks import NotNegative, Share, as_array, check_ids, check_value, concrete, require


def cross_entropy(
    logits: Array, labels: Any, weights: Any = None, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Array, Array]:
    """Sum of the cross entropies in nats, and the weight to divide it by.

    With label smoothing e the target gives 1 - e to the label and e / V to every word, the label included
    (Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4). It comes from the log-sum-exp, the mean
    logit and the label's logit: no one-hot array is made.

    Args:
        logits: [..., V], computed with in float32.
        labels: integers [...]; where the weight is 0 they may be anything. Under `jit`, where values cannot be seen,
            a label that counts and is below 0 or from V up makes the sum NaN.
        weights: numbers or booleans [...], 1 for labels that count; all of them by default.
        z_loss: weight of log(Z)^2, which keeps logits from drifting (Chowdhery et al. 2022, section 5).

    Returns:
        (sum, weight), float32 scalars.

    Raises:
        ValueError: dtypes or shapes do not fit, `label_smoothing` is not from 0 to below 1, `z_loss` is below 0, or,
            where values are at hand, labels that count are out of range, or weights are negative or not finite.
    """
    labels, weights = _check(logits, labels, weights, label_smoothing, z_loss)
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    known = (labels >= 0) & (labels < logits.shape[-1])
    label_logits = jnp.take_along_axis(logits, jnp.where(known, labels, 0)[..., None], axis=-1)[..., 0]
    loss = jnp.where(known, log_z - label_logits, jnp.nan)
    if label_smoothing:
        loss += label_smoothing * (label_logits - jnp.mean(logits, axis=-1))
    if z_loss:
        loss += z_loss * jnp.square(log_z)
    # Not only times 0: a label that does not count may lie outside of the vocabulary, where its loss is NaN.
    return jnp.sum(jnp.where(weights != 0, loss, 0.0) * weights), jnp.sum(weights)


def _check(logits: Array, labels: Any, weights: Any, label_smoothing: float, z_loss: float) -> tuple[Array, Array]:
    """The labels in a type that holds V, and the weights in float32."""
    check_value("label_smoothing", label_smoothing, Share)
    check_value("z_loss", z_loss, NotNegative)
    require(jnp.issubdtype(logits.dtype, jnp.floating), f"logits must be floating-point numbers, not {logits.dtype}")
    labels = as_array("labels", labels)
    weights = np.ones(labels.shape, np.float32) if weights is None else as_array("weights", weights)
    for name, x in (("labels", labels), ("weights", weights)):
        right = logits.shape[:-1]
        require(x.shape == right, f"{name} must have the shape {[*right]}, as logits ask, not {[*x.shape]}")
    values, used = concrete(labels), concrete(weights)
    if used is not None:
        require(bool(np.all((used >= 0) & (used < np.inf))), "weights must be finite and not negative")
    # Labels of which it is not known whether they count may be anything.
    counting = labels[:0] if values is None or used is None else values[used != 0]
    check_ids("labels", counting, logits.shape[-1], "the last axis of logits")
    labels = jnp.asarray(labels)
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels, jnp.asarray(weights, jnp.float32)
