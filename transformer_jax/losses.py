"""Cross entropy as (sum, weight) pairs, so that batches of any make-up can be added before dividing."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(
    logits: Array, labels: Array, weights: Array | None = None, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Array, Array]:
    """Sum of the cross entropies in nats, and the weight to divide it by.

    With label smoothing e the target gives 1 - e to the label and e / V to every word, the label included
    (Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4). It comes from the log-sum-exp, the mean
    logit and the label's logit: no one-hot array is made.

    Args:
        logits: [..., V], computed with in float32.
        labels: integers [...].
        weights: float or boolean [...], 1 for labels that count; all of them by default.
        z_loss: weight of log(Z)^2, which keeps logits from drifting (Chowdhery et al. 2022, section 5).

    Returns:
        (sum, weight), float32 scalars.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    loss = log_z - label_logits
    if label_smoothing:
        loss += label_smoothing * (label_logits - jnp.mean(logits, axis=-1))
    if z_loss:
        loss += z_loss * jnp.square(log_z)
    weights = jnp.ones(labels.shape, jnp.float32) if weights is None else weights.astype(jnp.float32)
    # Not only times 0: a label that does not count may lie outside of the vocabulary, where its loss is NaN.
    return jnp.sum(jnp.where(weights != 0, loss, 0.0) * weights), jnp.sum(weights)
