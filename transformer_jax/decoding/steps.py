"""Step functions: what a search asks of a model, and step functions that are made of others."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Gather = Callable[[Any, Array], Any]


class Tokens(NamedTuple):
    """What a step function reads.

    Attributes:
        ids_BW: the last token of each of W beams, int32.
        position: how many tokens stand before it, int32 scalar.
        history_BWT: beams change places between steps. A cache to which each step appends, and which nobody reorders,
            holds at position t of beam w what beam `history_BWT[b, w, t]` wrote there, for t < position; from
            `position` on each beam's own number.
    """

    ids_BW: Array
    position: Array
    history_BWT: Array


# (tokens, cache) -> (logits [B, W, V] of the next token, cache)
Step = Callable[[Tokens, Any], tuple[Array, Any]]
# The same for a model that knows no beams: (ids [R], cache of R rows) -> (logits [R, V], cache)
RowStep = Callable[[Array, Any], tuple[Array, Any]]


def gather_rows(cache: Any, rows_R: Array) -> Any:
    """Reorders a cache along the leading axis of its arrays; scalars stay."""
    return jax.tree.map(lambda x: x if x.ndim == 0 else jnp.take(x, rows_R, axis=0), cache)


def reordering(step: RowStep, gather: Gather = gather_rows) -> Step:
    """The step function of a model whose cache has batch * W rows, sentence-major, and is reordered at each step."""

    def run(tokens: Tokens, cache: Any) -> tuple[Array, Any]:
        B, W = tokens.ids_BW.shape
        before = jnp.maximum(tokens.position - 1, 0)
        parents_BW = jax.lax.dynamic_index_in_dim(tokens.history_BWT, before, axis=2, keepdims=False)
        rows_R = (parents_BW + W * jnp.arange(B)[:, None]).reshape(-1)
        logits_RV, cache = step(tokens.ids_BW.reshape(-1), gather(cache, rows_R))
        return logits_RV.reshape(B, W, -1), cache

    return run


def ensemble(steps: Sequence[Step]) -> Step:
    """Several models as one: the mean of their probabilities. The cache is a tuple of theirs.

    One alone stays what it is, without a pass over its logits.
    """

    def run(tokens: Tokens, caches: Any) -> tuple[Array, Any]:
        outputs = [step(tokens, cache) for step, cache in zip(steps, caches, strict=True)]
        if len(outputs) == 1:
            return outputs[0][0], (outputs[0][1],)
        logp_NBWV = jnp.stack([jax.nn.log_softmax(logits.astype(jnp.float32)) for logits, _ in outputs])
        mean_BWV = jax.nn.logsumexp(logp_NBWV, axis=0) - jnp.log(float(len(steps)))
        return mean_BWV, tuple(cache for _, cache in outputs)

    return run
