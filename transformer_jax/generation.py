"""Decoding with a Transformer, ids in, ids out."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from transformer_jax import decoding
from transformer_jax.checks import as_ids, check_fields, check_ids, check_value, concrete, listed, require
from transformer_jax.config import TransformerConfig
from transformer_jax.decoding import (
    BROKEN,
    Constraint,
    Phrases,
    Preset,
    SearchOptions,
    Step,
    Tokens,
    check_phrases,
)
from transformer_jax.masks import AttentionMask
from transformer_jax.seq2seq import ShortSoftmax, Transformer

GREEDY = "phrases need num_beams of 2 or more: greedy search tries no places for them"


class Decoding(NamedTuple):
    """What a step of a Transformer reads besides tokens; a row a sentence.

    Attributes:
        memory: every layer's keys and values of the source.
        mask_BS: which of them are tokens.
        cache: every layer's keys and values of the outputs, W slots a position.
        own_BN: 0 for the columns of a short softmax that are a sentence's own, -infinity for the others.
    """

    memory: Any
    mask_BS: Array
    cache: Any
    own_BN: Array | None = None


def decoder_step(model: Transformer, params: dict[str, Any], softmax: ShortSoftmax | None = None) -> Step:
    """The step function of a model, whose cache is a `Decoding`."""

    def step(tokens: Tokens, state: Decoding) -> tuple[Array, Decoding]:
        out = model.apply(
            {"params": params},
            tokens.ids_BW,
            state.memory,
            state.mask_BS,
            cache=state.cache,
            history_BWT=tokens.history_BWT,
            softmax=softmax,
            method="decode",
        )
        logits_BWV, cache = cast(Any, out)
        if state.own_BN is not None:
            logits_BWV += state.own_BN[:, None]
        return logits_BWV, state._replace(cache=cache)

    return step


def read_source(
    model: Transformer, params: dict[str, Any], input_ids: Array, mask_BS: Array, beams: int, slots: int
) -> Decoding:
    """The encoder's part, and an empty cache for so many beams and positions."""

    def run(method: str, *args: Any) -> Any:
        return model.apply({"params": params}, *args, method=method)

    input_ids = jnp.where(jnp.any(mask_BS, axis=1, keepdims=True), input_ids, BROKEN)
    memory = run("project_memory", run("encode", input_ids, mask_BS))
    return Decoding(memory, mask_BS, run("empty_cache", len(input_ids), slots * beams))


def generate(
    model: Transformer,
    params: dict[str, Any],
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    max_length: int = 64,
    preset: Preset = "hf",
    constraints: Sequence[Constraint] = (),
    phrases: Sequence[Sequence[Sequence[int]]] | None = None,
) -> Array:
    """The best output for each source: ids [B, max_length] int32, from the start token on, padded behind the end.

    A row without any token that is attended to, or with scores that are NaN or infinite, has no output: see Raises, and
    under `jit`, where values cannot be seen, its ids are -1 behind the start token.

    Args:
        input_ids: source tokens [B, S]; an array, or lists of one length.
        attention_mask: [B, S], 1 or True for tokens; by default everything but the padding token.
        num_beams: W; 1 is greedy search, which takes no account of the penalty.
        length_penalty, early_stopping, preset: see `SearchOptions`.
        max_length: start and end token included.
        constraints: see `transformer_jax.decoding.constraints`.
        phrases: what each output contains: for each row a list of lists of ids, see `transformer_jax.decoding.phrases`.

    Raises:
        ValueError: an option is out of range, ids or mask are not what the model reads, phrases cannot be in an output
            of that length, or rows have no output. It names the option or the rows.
    """
    check_value("preset", preset, Preset)
    c = model.config
    options = SearchOptions(
        max_length, c.decoder_start_id, c.eos_id, c.pad_id, num_beams, length_penalty, early_stopping, preset
    )
    check_fields(options)
    input_ids = as_ids("input_ids", input_ids)
    check_ids("input_ids", input_ids, c.vocab_size, f"the model's vocabulary of {c.vocab_size}")
    input_ids = jnp.asarray(input_ids)
    tokens = input_ids != c.pad_id if attention_mask is None else attention_mask
    mask_BS = cast(Array, AttentionMask.padding(tokens, input_ids.shape).key_mask_BS)
    refuse_rows(~mask_BS.any(axis=1), "hold no token that is attended to")
    wanted = None if phrases is None else _checked_phrases(phrases, c, len(input_ids), options)
    ids_BT = _generate(model, options, params, input_ids, mask_BS, tuple(constraints), wanted)
    broken = "have scores that are not finite: look for nan or infinity in the parameters"
    refuse_rows(
        ids_BT[:, 1] == BROKEN,
        f"{broken}, or for constraints that leave no token" if constraints or phrases else broken,
    )
    return ids_BT


def refuse_rows(wrong_B: Array, reason: str) -> None:
    """Raises ValueError where rows are wrong, if that can be seen."""
    wrong = concrete(wrong_B)
    rows = [] if wrong is None else [str(row) for row in np.flatnonzero(wrong)]
    require(not rows, f"rows {listed(rows)} of input_ids {reason}")


def _checked_phrases(
    phrases: Sequence[Sequence[Sequence[int]]], c: TransformerConfig, rows: int, options: SearchOptions
) -> Phrases:
    require(options.num_beams > 1, GREEDY)
    require(len(phrases) == rows, f"phrases are of {len(phrases)} rows, but input_ids of {rows}")
    for row, own in enumerate(phrases):
        try:
            check_phrases(own, c.target_vocab_size, (c.eos_id, c.pad_id), options.max_length - 2)
        except ValueError as error:
            raise ValueError(f"phrases[{row}]: {error}") from error
    return Phrases.of(phrases)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Transformer,
    options: SearchOptions,
    params: dict[str, Any],
    input_ids: Array,
    mask_BS: Array,
    constraints: tuple[Constraint, ...],
    phrases: Phrases | None,
) -> Array:
    state = read_source(model, params, input_ids, mask_BS, options.num_beams, options.max_length)
    step, rows = decoder_step(model, params), len(input_ids)
    if options.num_beams == 1:
        return decoding.greedy_search(step, state, rows, options, constraints)
    return decoding.beam_search(step, state, rows, options, constraints, phrases=phrases)[0][:, 0]
