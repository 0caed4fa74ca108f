"""Greedy search and sampling over any step function: outputs that grow on their own."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.checks import check_fields
from transformer_jax.decoding.beam import spoil
from transformer_jax.decoding.columns import Columns, ids_of
from transformer_jax.decoding.constraints import Constraint, SoFar, constrain_scores
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.steps import Step, Tokens
from transformer_jax.decoding.top import top_k


class Samples(NamedTuple):
    """The state of a sampling; all arrays but `length` have a row a sentence.

    Attributes:
        length: tokens of the outputs, the start token included, int32 scalar.
        ids_BWT, scores_BW: the outputs, and their log-probabilities under the model, without constraints.
        is_open_BW: whether an output goes on.
        is_broken_B: whether the scores of a sentence were not finite.
        limit_B: tokens that an output may have.
        keys_B: what each sentence's tokens are drawn by.
        constraints, cache: of the caller.
    """

    length: Array
    ids_BWT: Array
    scores_BW: Array
    is_open_BW: Array
    is_broken_B: Array
    limit_B: Array
    keys_B: Array
    constraints: Any
    cache: Any

    @property
    def is_open_B(self) -> Array:
        """Whether some output of a sentence goes on."""
        return jnp.any(self.is_open_BW, axis=1)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """`options.num_beams` outputs a sentence, each token drawn from the model's probabilities behind the constraints.

    Of the options the score and early stopping have no meaning here. Token t of output w of a sentence is drawn by the
    sentence's key, w and t, whatever batch it is in.
    """

    options: SearchOptions

    def __post_init__(self) -> None:
        check_fields(self.options)

    def begin(self, cache: Any, limit_B: Array, keys_B: Array, constraints: Sequence[Constraint] = ()) -> Samples:
        """The state in front of the first step; `keys_B` are typed keys."""
        o, B = self.options, len(limit_B)
        shape = (B, o.num_beams)
        return Samples(
            length=jnp.int32(1),
            ids_BWT=jnp.full((*shape, o.max_length), o.pad_id, jnp.int32).at[:, :, 0].set(o.start_id),
            scores_BW=jnp.zeros(shape, jnp.float32),
            is_open_BW=jnp.broadcast_to((limit_B > 1)[:, None], shape),
            is_broken_B=jnp.zeros(B, bool),
            limit_B=limit_B.astype(jnp.int32),
            keys_B=keys_B,
            constraints=tuple(constraints),
            cache=cache,
        )

    def extend(self, step: Step, samples: Samples, columns: Columns | None = None) -> Samples:
        """The state one token later."""
        B, W, T = samples.ids_BWT.shape
        last_BW = jax.lax.dynamic_index_in_dim(samples.ids_BWT, samples.length - 1, axis=2, keepdims=False)
        own_BWT = jnp.broadcast_to(jnp.arange(W, dtype=jnp.int32)[None, :, None], (B, W, T))
        logits_BWV, cache = step(Tokens(last_BW, samples.length - 1, own_BWT), samples.cache)
        logits_BWV = logits_BWV.astype(jnp.float32)
        norm_BW = jax.nn.logsumexp(logits_BWV, axis=-1)
        so_far = SoFar(samples.ids_BWT, samples.length, samples.limit_B, columns)
        scores_BWV = constrain_scores(samples.constraints, logits_BWV, so_far)
        at_BW = self._choose(samples, scores_BWV, columns)
        gained_BW = jnp.take_along_axis(logits_BWV, at_BW[:, :, None], axis=-1)[:, :, 0] - norm_BW
        is_possible_BW = jnp.isfinite(norm_BW) & jnp.any(scores_BWV > -jnp.inf, axis=-1)
        broken_B = jnp.any(~is_possible_BW & samples.is_open_BW, axis=1)
        next_BW = jnp.where(samples.is_open_BW, ids_of(columns, at_BW), self.options.pad_id).astype(jnp.int32)
        goes_on_BW = (next_BW != self.options.eos_id) & ~broken_B[:, None]
        goes_on_BW &= (samples.length + 1 < samples.limit_B)[:, None]
        return samples._replace(
            length=samples.length + 1,
            ids_BWT=jax.lax.dynamic_update_slice(samples.ids_BWT, next_BW[:, :, None], (0, 0, samples.length)),
            scores_BW=samples.scores_BW + jnp.where(samples.is_open_BW, gained_BW, 0.0),
            is_open_BW=samples.is_open_BW & goes_on_BW,
            is_broken_B=samples.is_broken_B | broken_B,
            cache=cache,
        )

    def outputs(self, samples: Samples) -> tuple[Array, Array]:
        """Ids [B, W, T], padded behind their end; float32 log-probabilities [B, W], NaN of a broken sentence."""
        scores_BW = jnp.where(samples.is_broken_B[:, None], jnp.nan, samples.scores_BW)
        return spoil(samples.ids_BWT, samples.is_broken_B), scores_BW

    def _choose(self, samples: Samples, scores_BWV: Array, columns: Columns | None) -> Array:
        """The columns of the tokens that come, by Gumbel's noise, which an id has whatever else is in a short list."""
        W, V = self.options.num_beams, scores_BWV.shape[-1] if columns is None else len(columns.of_V)

        def noise(key: Array, output: Array) -> Array:
            return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, output), samples.length), (V,))

        noise_BWV = jax.vmap(jax.vmap(noise, (None, 0)), (0, None))(samples.keys_B, jnp.arange(W))
        if columns is not None:
            noise_BWV = jnp.take(noise_BWV, columns.ids_N, axis=-1)
        return jnp.argmax(scores_BWV + noise_BWV, axis=-1)


class GreedySearch(Sampling):
    """As `Sampling`, but for the most probable token each time; the keys are not looked at."""

    def _choose(self, samples: Samples, scores_BWV: Array, columns: Columns | None) -> Array:
        return top_k(scores_BWV, 1)[1][:, :, 0]
