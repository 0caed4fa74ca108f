"""Searches over any step function; nothing here knows a model.

A step function takes the last tokens and a cache, and gives the logits of the next tokens and the cache, see `Tokens`.
Everything runs under `jax.jit`, with static shapes. A sentence's output does not depend on the others of its batch, but
for the rounding of other shapes.

A sentence whose logits turn out NaN or +infinity, or -infinity throughout, has no best output, nor has one of which
constraints leave nothing: its ids are -1 behind the start token and its scores NaN, and the search goes on for the
others.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.checks import check_fields
from transformer_jax.decoding.beam import Beams, BeamSearch
from transformer_jax.decoding.columns import Columns
from transformer_jax.decoding.constraints import (
    Constraint,
    EndAtLimit,
    Forbidden,
    ForcedStart,
    MinimumLength,
    NoRepeatedNgram,
    Prefix,
    Renormalized,
    RepetitionPenalty,
    SoFar,
    Temperature,
    TopK,
    TopP,
    check_columns,
)
from transformer_jax.decoding.options import BROKEN, Beam, Length, Penalty, Preset, SearchOptions
from transformer_jax.decoding.phrases import Phrases, check_phrases
from transformer_jax.decoding.sample import GreedySearch, Samples, Sampling
from transformer_jax.decoding.steps import Gather, Step, Tokens, ensemble, gather_rows, reordering

Search = BeamSearch | Sampling


def advance(
    search: Search, step: Step, state: Any, length: Array | int | None = None, columns: Columns | None = None
) -> Any:
    """The state when all sentences are done, or the outputs have so many tokens.

    Args:
        columns: what the logits of the step function are of, where that is not the whole vocabulary.
    """
    T = search.options.max_length
    stop = T if length is None else jnp.minimum(length, T)

    def unfinished(state: Any) -> Array:
        return (state.length < stop) & jnp.any(state.is_open_B)

    return jax.lax.while_loop(unfinished, lambda state: search.extend(step, state, columns), state)


def limits(options: SearchOptions, batch: int, limit_B: Array | None) -> Array:
    """The most tokens of each output: `max_length`, or what a sentence has of its own, if that is less."""
    whole_B = jnp.full(batch, options.max_length, jnp.int32)
    return whole_B if limit_B is None else jnp.minimum(whole_B, limit_B)


def greedy_search(
    step: Step,
    cache: Any,
    batch: int,
    options: SearchOptions,
    constraints: Sequence[Constraint] = (),
    limit_B: Array | None = None,
    columns: Columns | None = None,
) -> Array:
    """The most probable token at each step: ids [B, max_length], which begin with the start token."""
    check_fields(options)
    search = GreedySearch(options._replace(num_beams=1))
    keys_B = jax.random.split(jax.random.key(0), batch)
    state = search.begin(cache, limits(options, batch, limit_B), keys_B, constraints)
    return search.outputs(advance(search, step, state, columns=columns))[0][:, 0]


def beam_search(
    step: Step,
    cache: Any,
    batch: int,
    options: SearchOptions,
    constraints: Sequence[Constraint] = (),
    limit_B: Array | None = None,
    columns: Columns | None = None,
    phrases: Phrases | None = None,
) -> tuple[Array, Array]:
    """The best outputs that a beam finds, see `BeamSearch`.

    With phrases those that contain all of a sentence's, see `Phrases`; `check_phrases` says whether that can be.

    Returns:
        ids [B, W, max_length], best first, padded behind their end; scores float32 [B, W], -infinity where fewer ended.
    """
    search = BeamSearch(options)
    state = search.begin(cache, limits(options, batch, limit_B), constraints, phrases)
    return search.outputs(advance(search, step, state, columns=columns))


def sample(
    step: Step,
    cache: Any,
    key: Array,
    batch: int,
    options: SearchOptions,
    constraints: Sequence[Constraint] = (),
    limit_B: Array | None = None,
    columns: Columns | None = None,
) -> tuple[Array, Array]:
    """`num_beams` outputs drawn for each sentence: ids [B, W, max_length] and log-probabilities float32 [B, W].

    `key` draws them, through a key for each row of the batch.
    """
    search = Sampling(options)
    keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))
    state = search.begin(cache, limits(options, batch, limit_B), keys_B, constraints)
    return search.outputs(advance(search, step, state, columns=columns))


__all__ = [
    "BROKEN",
    "Beam",
    "BeamSearch",
    "Beams",
    "Columns",
    "Constraint",
    "EndAtLimit",
    "Forbidden",
    "ForcedStart",
    "Gather",
    "GreedySearch",
    "Length",
    "MinimumLength",
    "NoRepeatedNgram",
    "Penalty",
    "Phrases",
    "Prefix",
    "Preset",
    "Renormalized",
    "RepetitionPenalty",
    "Samples",
    "Sampling",
    "Search",
    "SearchOptions",
    "SoFar",
    "Step",
    "Temperature",
    "Tokens",
    "TopK",
    "TopP",
    "advance",
    "beam_search",
    "check_columns",
    "check_phrases",
    "ensemble",
    "gather_rows",
    "greedy_search",
    "limits",
    "reordering",
    "sample",
]
