"""Greedy and beam search over any step function; nothing here knows a model.

A step function takes the last token of each row and a cache, and gives the logits of the next token and the cache:
`step(ids_R, cache) -> (logits_RV, cache)`. Everything runs under `jax.jit`, with static shapes.

A sentence whose logits turn out NaN or +infinity, or -infinity throughout, has no best output: its ids are -1 behind
the start token and its scores NaN, and the search goes on for the others.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.checks import Id, Range, check_fields

Length = Annotated[int, Range(2, 2**20)]  # a start and an end at least
Beam = Annotated[int, Range(1, 1024)]
Penalty = Annotated[float, Range(-5, 5)]  # beyond, powers of long outputs overflow float32
Step = Callable[[Array, Any], tuple[Array, Any]]
Gather = Callable[[Any, Array], Any]

BROKEN = -1  # no id of anything
# Far below any sum of log-probabilities, and finite so that differences of two of them are no NaN.
NEVER = -1.0e9


class SearchOptions(NamedTuple):
    """What a search stops at and how it scores.

    Attributes:
        max_length: tokens of an output, its start token and end token included.
        score: "hf" divides a log-probability by length^length_penalty (Hugging Face's `generate`); "paper" by
            ((5 + length) / 6)^length_penalty (Wu et al. 2016, equation 14, as Vaswani et al. 2017 use it). The
            length counts the end token, not the start token.
        early_stopping: True: stop as soon as there are `num_beams` finished outputs. False: stop when the best
            running beam, scored at its present length, is below the worst finished one. "never": the same with
            the most favourable length.
    """

    max_length: Length
    start_id: Id
    eos_id: Id
    pad_id: Id
    num_beams: Beam = 4
    length_penalty: Penalty = 1.0
    early_stopping: bool | Literal["never"] = False
    score: Literal["hf", "paper"] = "hf"

    def penalty(self, length: Array | int) -> Array:
        """What the log-probability of `length` tokens is divided by."""
        length = jnp.asarray(length, jnp.float32)
        base = length if self.score == "hf" else (5.0 + length) / 6.0
        return base**self.length_penalty


def greedy_search(step: Step, cache: Any, batch: int, options: SearchOptions) -> Array:
    """The most probable token at each step: ids [B, max_length], which begin with the start token."""

    def unfinished(state: tuple[Array, Array, Array, Any]) -> Array:
        length, _, done_B, _ = state
        return (length < options.max_length) & ~jnp.all(done_B)

    def extend(state: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
        length, ids_BT, done_B, cache = state
        logits_BV, cache = step(_column(ids_BT, length - 1), cache)
        best_B = jnp.argmax(logits_BV, axis=-1)  # the first NaN, if there is one
        finite_B = jnp.isfinite(jnp.take_along_axis(logits_BV, best_B[:, None], axis=-1)[:, 0])
        next_B = jnp.where(done_B, options.pad_id, jnp.where(finite_B, best_B, BROKEN)).astype(jnp.int32)
        ids_BT = jax.lax.dynamic_update_slice(ids_BT, next_B[:, None], (0, length))
        return length + 1, ids_BT, done_B | (next_B == options.eos_id) | (next_B == BROKEN), cache

    check_fields(options)
    ids_BT = jnp.full((batch, options.max_length), options.pad_id, jnp.int32).at[:, 0].set(options.start_id)
    start = (jnp.int32(1), ids_BT, jnp.zeros(batch, bool), cache)
    ids_BT = jax.lax.while_loop(unfinished, extend, start)[1]
    return _spoil(ids_BT, jnp.any(ids_BT == BROKEN, axis=1))


class Beams(NamedTuple):
    """The state of a beam search; rows of the cache are batch * beam."""

    length: Array
    running_BWT: Array
    running_scores_BW: Array
    finished_BWT: Array
    finished_scores_BW: Array
    is_finished_BW: Array
    may_improve_B: Array
    is_broken_B: Array
    cache: Any


def gather_rows(cache: Any, rows_R: Array) -> Any:
    """Reorders a cache along the leading axis of its arrays; scalars stay."""
    return jax.tree.map(lambda x: x if x.ndim == 0 else jnp.take(x, rows_R, axis=0), cache)


def beam_search(
    step: Step, cache: Any, batch: int, options: SearchOptions, gather: Gather = gather_rows
) -> tuple[Array, Array]:
    """Beam search with the semantics of Hugging Face's `generate` (transformers 5), under either score.

    Each step looks at the 2 W best continuations, so that W remain if W of them end; of those that end, only
    ones among the first W ranks count as finished. A row whose running beams cannot improve on its finished
    ones takes no more (a latch).

    Args:
        step: for rows of batch * W, sentence-major.
        cache: for the same rows.
        gather: reorders the cache; the default does so along the leading axes.

    Returns:
        ids [B, W, max_length], best first, padded behind their end; scores float32 [B, W].
    """
    check_fields(options)
    W, T = options.num_beams, options.max_length
    ids_BWT = jnp.full((batch, W, T), options.pad_id, jnp.int32).at[:, :, 0].set(options.start_id)
    scores_BW = jnp.full((batch, W), NEVER, jnp.float32)
    beams = Beams(
        length=jnp.int32(1),
        running_BWT=ids_BWT,
        # All beams begin alike: only the first may extend, or the W best would be W times the same.
        running_scores_BW=scores_BW.at[:, 0].set(0.0),
        finished_BWT=ids_BWT,
        finished_scores_BW=scores_BW,
        is_finished_BW=jnp.zeros((batch, W), bool),
        may_improve_B=jnp.ones(batch, bool),
        is_broken_B=jnp.zeros(batch, bool),
        cache=cache,
    )

    def unfinished(beams: Beams) -> Array:
        go_on = (beams.length < T) & jnp.any(beams.may_improve_B)
        if options.early_stopping is True:
            go_on &= ~jnp.all(beams.is_finished_BW)
        return go_on

    beams = jax.lax.while_loop(unfinished, lambda b: _extend(b, step, gather, options), beams)
    scores_BW = jnp.where(beams.is_broken_B[:, None], jnp.nan, beams.finished_scores_BW)
    return _spoil(beams.finished_BWT, beams.is_broken_B), scores_BW


def _extend(beams: Beams, step: Step, gather: Gather, options: SearchOptions) -> Beams:
    B, W, T = beams.running_BWT.shape
    logits_RV, cache = step(_column(beams.running_BWT.reshape(B * W, T), beams.length - 1), beams.cache)
    logp_BWV = jax.nn.log_softmax(logits_RV.astype(jnp.float32)).reshape(B, W, -1)
    # One logit that is NaN or +infinity makes all of its row NaN.
    is_broken_B = beams.is_broken_B | jnp.any(jnp.isnan(logp_BWV[:, :, 0]), axis=1)
    total_BWV = beams.running_scores_BW[:, :, None] + logp_BWV
    V = total_BWV.shape[-1]
    scores_BC, flat_BC = jax.lax.top_k(total_BWV.reshape(B, W * V), 2 * W)
    beam_BC, token_BC = flat_BC // V, flat_BC % V
    ids_BCT = jnp.take_along_axis(beams.running_BWT, beam_BC[:, :, None], axis=1)
    ids_BCT = jax.lax.dynamic_update_slice(ids_BCT, token_BC[:, :, None], (0, 0, beams.length))
    generated = beams.length  # tokens without the start token, the new one included
    ends_BC = (token_BC == options.eos_id) | (beams.length + 1 >= T)

    running_scores_BW, pick_BW = jax.lax.top_k(jnp.where(ends_BC, NEVER, scores_BC), W)
    rows_R = (jnp.take_along_axis(beam_BC, pick_BW, axis=1) + W * jnp.arange(B)[:, None]).reshape(-1)

    counts_BC = ends_BC & (jnp.arange(2 * W) < W)[None, :] & beams.may_improve_B[:, None]
    if options.early_stopping is True:
        counts_BC &= ~jnp.all(beams.is_finished_BW, axis=1, keepdims=True)
    ended_scores_BC = jnp.where(counts_BC, scores_BC / options.penalty(generated), NEVER)
    finished_scores_BW, best_BW = jax.lax.top_k(jnp.concatenate([beams.finished_scores_BW, ended_scores_BC], axis=1), W)
    finished_BWT = jnp.concatenate([beams.finished_BWT, ids_BCT], axis=1)
    is_finished = jnp.concatenate([beams.is_finished_BW, counts_BC], axis=1)
    is_finished_BW = jnp.take_along_axis(is_finished, best_BW, axis=1)

    favourable = options.early_stopping == "never" and options.length_penalty > 0
    hope_B = running_scores_BW[:, 0] / options.penalty(T - 1 if favourable else generated)
    worst_B = jnp.where(jnp.all(is_finished_BW, axis=1), jnp.min(finished_scores_BW, axis=1), NEVER)
    return Beams(
        length=beams.length + 1,
        running_BWT=jnp.take_along_axis(ids_BCT, pick_BW[:, :, None], axis=1),
        running_scores_BW=running_scores_BW,
        finished_BWT=jnp.take_along_axis(finished_BWT, best_BW[:, :, None], axis=1),
        finished_scores_BW=finished_scores_BW,
        is_finished_BW=is_finished_BW | is_broken_B[:, None],  # nobody waits for it
        may_improve_B=beams.may_improve_B & (hope_B > worst_B) & ~is_broken_B,
        is_broken_B=is_broken_B,
        cache=gather(cache, rows_R),
    )


def _column(ids_RT: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(ids_RT, index, axis=1, keepdims=False)


def _spoil(ids: Array, is_broken_B: Array) -> Array:
    """Ids [B, ..., T] with -1 behind the start token of broken sentences."""
    broken = is_broken_B.reshape(-1, *[1] * (ids.ndim - 1))
    return ids.at[..., 1:].set(jnp.where(broken, BROKEN, ids[..., 1:]))
