"""Beam search over any step function."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.checks import check_fields
from transformer_jax.decoding.columns import Columns, column_of, ids_of
from transformer_jax.decoding.constraints import Constraint, SoFar, constrain_scores
from transformer_jax.decoding.options import BROKEN, NEVER, SearchOptions
from transformer_jax.decoding.phrases import Phrases, Progress
from transformer_jax.decoding.steps import Step, Tokens
from transformer_jax.decoding.top import top_k


class Beams(NamedTuple):
    """The state of a beam search; all arrays but `length` have a row a sentence.

    Attributes:
        length: tokens of the running outputs, the start token included, int32 scalar.
        ids_BWT, scores_BW: running outputs, and their log-probabilities.
        history_BWT: see `Tokens`.
        ended_ids_BWT, ended_scores_BW, is_ended_BW: the best outputs that have ended, with their final scores.
        is_open_B: whether the search goes on for a sentence.
        is_broken_B: whether its scores were not finite.
        width_B: running outputs that count, fewer than W only as Marian narrows its beam.
        limit_B: tokens that an output may have.
        phrases: how far the running outputs are with what they must contain; None where that is nothing.
        constraints, cache: of the caller.
    """

    length: Array
    ids_BWT: Array
    scores_BW: Array
    history_BWT: Array
    ended_ids_BWT: Array
    ended_scores_BW: Array
    is_ended_BW: Array
    is_open_B: Array
    is_broken_B: Array
    width_B: Array
    limit_B: Array
    phrases: Progress | None
    constraints: Any
    cache: Any


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Beam search with the semantics of Hugging Face's `generate` (transformers 5), under its score or the paper's, or
    with Marian's.

    Each step looks at the 2 W best continuations, so that W remain if W of them end; of those that end, only
    ones among the first W ranks count as finished. A sentence whose running beams cannot improve on its finished
    ones takes no more (a latch). What becomes of a sentence does not depend on the others.
    """

    options: SearchOptions

    def __post_init__(self) -> None:
        check_fields(self.options)

    def begin(
        self, cache: Any, limit_B: Array, constraints: Sequence[Constraint] = (), phrases: Phrases | None = None
    ) -> Beams:
        """The state in front of the first step."""
        B, W, T = len(limit_B), self.options.num_beams, self.options.max_length
        ids_BWT = jnp.full((B, W, T), self.options.pad_id, jnp.int32).at[:, :, 0].set(self.options.start_id)
        never_BW = jnp.full((B, W), NEVER, jnp.float32)
        return Beams(
            length=jnp.int32(1),
            ids_BWT=ids_BWT,
            # All beams begin alike: only the first may extend, or the W best would be W times the same.
            scores_BW=never_BW.at[:, 0].set(0.0),
            history_BWT=jnp.broadcast_to(jnp.arange(W, dtype=jnp.int32)[None, :, None], (B, W, T)),
            ended_ids_BWT=ids_BWT,
            ended_scores_BW=jnp.full((B, W), -jnp.inf),
            is_ended_BW=jnp.zeros((B, W), bool),
            is_open_B=limit_B > 1,
            is_broken_B=jnp.zeros(B, bool),
            width_B=jnp.full(B, W, jnp.int32),
            limit_B=limit_B.astype(jnp.int32),
            phrases=None if phrases is None else Progress.begin(phrases, W),
            constraints=tuple(constraints),
            cache=cache,
        )

    def extend(self, step: Step, beams: Beams, columns: Columns | None = None) -> Beams:
        """The state one token later."""
        B, W, _ = beams.ids_BWT.shape
        last_BW = jax.lax.dynamic_index_in_dim(beams.ids_BWT, beams.length - 1, axis=2, keepdims=False)
        logits_BWV, cache = step(Tokens(last_BW, beams.length - 1, beams.history_BWT), beams.cache)
        scores_BC, beam_BC, token_BC, is_broken_B = self._continuations(beams, logits_BWV, columns)
        ids_BCT = _write(_of_beams(beams.ids_BWT, beam_BC), token_BC[:, :, None], beams.length)
        is_end_BC = (token_BC == self.options.eos_id) | (beams.length + 1 >= beams.limit_B)[:, None]
        is_end_BC &= scores_BC > NEVER / 2
        counts_BC = jnp.arange(2 * W)[None, :] < beams.width_B[:, None]  # ranks that may end, or under Marian go on
        width_B = beams.width_B
        ended = self._end(beams, scores_BC, ids_BCT, is_end_BC & counts_BC)
        if self.options.preset == "marian":
            goes_on_BC = counts_BC & ~is_end_BC
            width_B = jnp.sum(goes_on_BC, axis=1, dtype=jnp.int32)
        else:
            goes_on_BC = ~is_end_BC
        pick_BW = jnp.argsort(~goes_on_BC, axis=1, stable=True)[:, :W]  # the first that go on
        parents_BW = jnp.take_along_axis(beam_BC, pick_BW, axis=1)
        phrases = beams.phrases
        if phrases is not None:
            token_BW = jnp.take_along_axis(token_BC, pick_BW, axis=1)
            phrases = phrases._replace(matched_BWC=phrases.behind(parents_BW, token_BW))
        own_BW = jnp.broadcast_to(jnp.arange(W, dtype=jnp.int32)[None], (B, W))
        slots_BW2 = jnp.stack([parents_BW, own_BW], axis=-1)  # of the last token, and of the one that comes
        more = beams._replace(
            length=beams.length + 1,
            ids_BWT=_of_beams(ids_BCT, pick_BW),
            scores_BW=jnp.take_along_axis(jnp.where(goes_on_BC, scores_BC, NEVER), pick_BW, axis=1),
            history_BWT=_write(_of_beams(beams.history_BWT, parents_BW), slots_BW2, beams.length - 1),
            is_broken_B=beams.is_broken_B | (is_broken_B & beams.is_open_B),
            width_B=width_B,
            phrases=phrases,
            cache=cache,
            **ended,
        )
        return more._replace(is_open_B=self._is_open(more, beams.is_open_B))

    def outputs(self, beams: Beams) -> tuple[Array, Array]:
        """Ids [B, W, T], best first, padded behind their end; float32 scores [B, W].

        Where fewer ended, scores are -infinity; of a broken sentence, or one of which the constraints have left
        nothing, they are NaN.
        """
        is_broken_B = beams.is_broken_B | (~jnp.any(beams.is_ended_BW, axis=1) & (beams.limit_B > 1))
        scores_BW = jnp.where(is_broken_B[:, None], jnp.nan, beams.ended_scores_BW)
        return spoil(beams.ended_ids_BWT, is_broken_B), scores_BW

    def _continuations(
        self, beams: Beams, logits_BWV: Array, columns: Columns | None
    ) -> tuple[Array, Array, Array, Array]:
        """The 2 W best of a sentence, best first: scores, beams and tokens [B, 2 W]; and which sentences are broken."""
        B, W, V = logits_BWV.shape
        logits_BWV = logits_BWV.astype(jnp.float32)
        norm_BW1 = jax.nn.logsumexp(logits_BWV, axis=-1, keepdims=True)
        # One logit that is NaN or +infinity shows in the sum; all -infinity too.
        is_broken_B = ~jnp.all(jnp.isfinite(norm_BW1), axis=(1, 2))
        if beams.constraints:
            so_far = SoFar(beams.ids_BWT, beams.length, beams.limit_B, columns)
            logits_BWV = constrain_scores(beams.constraints, logits_BWV - norm_BW1, so_far)
            norm_BW1 = jnp.zeros_like(norm_BW1)
        # The best of a sentence are among the best of its beams, and need not be normalised to be found.
        best_BWC, token_BWC = top_k(logits_BWV, min(2 * W, V))
        token_BWC = ids_of(columns, token_BWC)
        if beams.phrases is not None:
            best_BWC, token_BWC = _with_phrases(beams.phrases, logits_BWV, best_BWC, token_BWC, columns)
        count = token_BWC.shape[2]
        total_BWC = beams.scores_BW[:, :, None] + (best_BWC - norm_BW1)
        total_BN = jnp.maximum(total_BWC, 2 * NEVER).reshape(B, W * count)  # -infinity would become NaN
        token_BN = token_BWC.reshape(B, W * count)
        if beams.phrases is None:
            scores_BC, flat_BC = jax.lax.top_k(total_BN, min(2 * W, W * count))
        else:
            beam_BN = jnp.broadcast_to(jnp.arange(W * count)[None] // count, (B, W * count))
            room_BN = jnp.where(token_BN == self.options.eos_id, 0, (beams.limit_B - beams.length - 1)[:, None])
            matched_BNC = beams.phrases.behind(beam_BN, token_BN)
            order_BN, possible_BN = beams.phrases.order(total_BN, matched_BNC, room_BN)
            flat_BC = order_BN[:, : 2 * W]
            scores_BC = jnp.take_along_axis(jnp.where(possible_BN, total_BN, 2 * NEVER), flat_BC, axis=1)
        token_BC = jnp.take_along_axis(token_BN, flat_BC, axis=1)
        return scores_BC, (flat_BC // count).astype(jnp.int32), token_BC.astype(jnp.int32), is_broken_B

    def _end(self, beams: Beams, scores_BC: Array, ids_BCT: Array, counts_BC: Array) -> dict[str, Array]:
        """The best ended outputs with those that end now."""
        W = self.options.num_beams
        counts_BC &= beams.is_open_B[:, None]
        final_BC = jnp.where(counts_BC, scores_BC / self.options.penalty(beams.length), -jnp.inf)
        scores_BW, best_BW = jax.lax.top_k(jnp.concatenate([beams.ended_scores_BW, final_BC], axis=1), W)
        ids_BAT = jnp.concatenate([beams.ended_ids_BWT, ids_BCT], axis=1)
        is_ended_BA = jnp.concatenate([beams.is_ended_BW, counts_BC], axis=1)
        return {
            "ended_ids_BWT": _of_beams(ids_BAT, best_BW),
            "ended_scores_BW": scores_BW,
            "is_ended_BW": jnp.take_along_axis(is_ended_BA, best_BW, axis=1),
        }

    def _is_open(self, beams: Beams, was_open_B: Array) -> Array:
        """Whether a sentence's running beams may still improve on its ended ones; once they may not, never again."""
        o = self.options
        best_B = jnp.max(beams.scores_BW, axis=1)
        running_B = best_B > NEVER / 2
        open_B = was_open_B & running_B & ~beams.is_broken_B & (beams.length < beams.limit_B)
        if o.preset == "marian":
            return open_B
        all_ended_B = jnp.all(beams.is_ended_BW, axis=1)
        favourable = o.early_stopping == "never" and o.length_penalty > 0
        lengths_B = beams.limit_B - 1 if favourable else beams.length - 1
        hope_B = best_B / o.penalty(lengths_B)
        worst_B = jnp.where(all_ended_B, jnp.min(beams.ended_scores_BW, axis=1), -jnp.inf)
        open_B &= hope_B > worst_B
        return open_B & ~all_ended_B if o.early_stopping is True else open_B


def _with_phrases(
    phrases: Progress, logits_BWV: Array, best_BWC: Array, token_BWC: Array, columns: Columns | None
) -> tuple[Array, Array]:
    """Candidates of each beam, logits and tokens, with those by which it comes further with a phrase."""
    ids_BWC, comes_further_BWC = phrases.next_ids()
    at_BWC = column_of(columns, ids_BWC)
    more_BWC = jnp.take_along_axis(logits_BWV, at_BWC, axis=-1, mode="fill", fill_value=-jnp.inf)
    count = token_BWC.shape[2]
    seen_BWC = jnp.concatenate([token_BWC, jnp.where(comes_further_BWC, ids_BWC, -1)], axis=-1)
    places = jnp.arange(seen_BWC.shape[2])
    is_earlier_CC = places[None, :] < places[count:, None]
    is_there_BWC = jnp.any((ids_BWC[..., None] == seen_BWC[:, :, None]) & is_earlier_CC[None, None], axis=-1)
    more_BWC = jnp.where(comes_further_BWC & ~is_there_BWC, more_BWC, -jnp.inf)
    return jnp.concatenate([best_BWC, more_BWC], axis=-1), jnp.concatenate([token_BWC, ids_BWC], axis=-1)


def _of_beams(x_BAT: Array, beam_BC: Array) -> Array:
    return jnp.take_along_axis(x_BAT, beam_BC[:, :, None], axis=1)


def _write(x_BAT: Array, new_BAN: Array, at: Array) -> Array:
    return jax.lax.dynamic_update_slice(x_BAT, new_BAN, (0, 0, at))


def spoil(ids: Array, is_broken_B: Array) -> Array:
    """Ids [B, ..., T] with -1 behind the start token of broken sentences."""
    broken = is_broken_B.reshape(-1, *[1] * (ids.ndim - 1))
    return ids.at[..., 1:].set(jnp.where(broken, BROKEN, ids[..., 1:]))
