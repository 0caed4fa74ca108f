"""Mask-predict: many [MASK] filled in together, and the least confident of them again (Ghazvininejad et al. 2019)."""

import functools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bert_jax.heads import BertForMaskedLM
from transformer_jax.checks import Range, as_ids, check_ids, check_value, concrete, listed, require
from transformer_jax.masks import AttentionMask


class MaskPredictOutput(NamedTuple):
    """Rows without [MASK], int32 [B, L], and the probability with which each token was chosen, float32 [B, L].

    The probability of a token that was given is 1. The mean of the logarithms ranks answers of different lengths
    (section 3.3 of the paper).
    """

    input_ids: Array
    probabilities: Array


def mask_predict(
    model: BertForMaskedLM,
    params: dict[str, Any],
    input_ids: ArrayLike,
    token_type_ids: ArrayLike | None = None,
    attention_mask: ArrayLike | None = None,
    *,
    mask_id: int,
    special_ids: Sequence[int],
    iterations: int = 10,
) -> MaskPredictOutput:
    """Fills in every [MASK] of each row in a constant number of passes (Ghazvininejad et al. 2019, section 3.1).

    The first pass predicts all N of a row. Pass t of T, counted from 0, masks the N (T - t) / T of them, rounded down,
    whose probabilities are lowest, and predicts them anew, given all the others; those keep token and probability. Of
    equal probabilities the first in the row counts as lowest. One iteration is one prediction of all at once.

    It compiles by itself, for rows of one shape and numbers of [MASK] up to the next power of two.

    Args:
        input_ids: rows of tokens [B, L], with [MASK] wherever a token is wanted: for a text of n tokens
            [CLS], n times [MASK], [SEP].
        token_type_ids, attention_mask: as in `BertModel`; rows with padding need the latter.
        mask_id: id of [MASK], such as `tokenizer.mask_id`.
        special_ids: what is never filled in, such as `tokenizer.special_ids`; [MASK] never is.
        iterations: T.

    Raises:
        ValueError: ids or masks are not what `BertModel` reads; rows that hold no [MASK], or one that is not attended
            to; ids that are all special; no iteration; answers that are not finite; or a call under `jit`, where there
            are no values to find [MASK] in.
    """
    check_value("iterations", iterations, Annotated[int, Range(1, 1000)])
    ids_BL = concrete(as_ids("input_ids", input_ids))
    if ids_BL is None:
        raise ValueError("mask_predict needs the values of input_ids: call it outside of jit, it compiles by itself")
    allowed_V = _allowed(model.config.vocab_size, mask_id, special_ids)
    masked_BL = ids_BL == mask_id
    _refuse_rows(~masked_BL.any(1), "hold no [MASK]: there is nothing to fill in")
    if attention_mask is not None:
        tokens_BL = AttentionMask.padding(attention_mask, ids_BL.shape).key_mask_BS
        _refuse_rows((masked_BL & ~np.asarray(tokens_BL)).any(1), "hold a [MASK] that attention_mask calls padding")
        attention_mask = tokens_BL
    inputs: dict[str, Any] = {"input_ids": ids_BL, "token_type_ids": token_type_ids, "attention_mask": attention_mask}
    jax.eval_shape(functools.partial(model.apply, {"params": params}, **inputs))  # refuses what the model refuses
    counts_B = masked_BL.sum(1, dtype=np.int32)
    slots = min(ids_BL.shape[1], 1 << (int(counts_B.max()) - 1).bit_length())
    at_BP = np.argsort(~masked_BL, axis=1, kind="stable")[:, :slots].astype(np.int32)  # [MASK] first, in their order
    out = _mask_predict(model, mask_id, params, inputs, at_BP, counts_B, allowed_V, iterations)
    _refuse_rows(~np.isfinite(out.probabilities).all(1), "have answers that are not finite: look for nan in params")
    return out


def _allowed(vocab_size: int, mask_id: int, special_ids: Sequence[int]) -> np.ndarray:
    """Boolean [V]: what may be filled in."""
    never = np.asarray([mask_id, *special_ids])
    check_ids("mask_id and special_ids", never, vocab_size, "vocab_size")
    allowed_V = np.ones(vocab_size, bool)
    allowed_V[never] = False
    require(bool(allowed_V.any()), f"special_ids are all {vocab_size} ids of the model: nothing is left to fill in")
    return allowed_V


def _refuse_rows(wrong_B: np.ndarray, reason: str) -> None:
    require(not wrong_B.any(), f"rows {listed([str(row) for row in np.flatnonzero(wrong_B)])} of input_ids {reason}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mask_predict(
    model: BertForMaskedLM,
    mask_id: int,
    params: dict[str, Any],
    inputs: dict[str, Any],
    at_BP: Array,
    counts_B: Array,
    allowed_V: Array,
    iterations: Array,
) -> MaskPredictOutput:
    """The slots `at_BP` of a row are its `counts_B` [MASK] and, behind them, what stays as it is."""
    wanted_BP = jnp.arange(at_BP.shape[1])[None, :] < counts_B[:, None]
    ids_BL = jnp.asarray(inputs["input_ids"], jnp.int32)
    rows_B1 = jnp.arange(len(ids_BL))[:, None]
    given_BP = jnp.take_along_axis(ids_BL, at_BP, axis=1)

    def refine(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        tokens_BP, probabilities_BP = state
        again_B = counts_B * (iterations - t) // iterations
        rank_BP = jnp.argsort(jnp.argsort(probabilities_BP, axis=1), axis=1)  # both sorts are stable
        again_BP = rank_BP < again_B[:, None]
        tokens_BP = jnp.where(again_BP, mask_id, tokens_BP)
        refined = inputs | {"input_ids": ids_BL.at[rows_B1, at_BP].set(tokens_BP)}
        out: Any = model.apply({"params": params}, **refined, masked_positions=at_BP)
        chances_BPV = jax.nn.softmax(jnp.where(allowed_V[None, None, :], out.logits, -jnp.inf), axis=-1)
        best_BP = jnp.argmax(chances_BPV, axis=-1).astype(jnp.int32)  # the first NaN, if there is one
        chance_BP = jnp.max(chances_BPV, axis=-1)
        return jnp.where(again_BP, best_BP, tokens_BP), jnp.where(again_BP, chance_BP, probabilities_BP)

    # What is not wanted is as certain as can be, and beyond: it is never masked.
    start = (given_BP, jnp.where(wanted_BP, 0.0, jnp.inf).astype(jnp.float32))
    tokens_BP, probabilities_BP = jax.lax.fori_loop(0, iterations, refine, start)
    probabilities_BL = jnp.ones(ids_BL.shape, jnp.float32)
    return MaskPredictOutput(
        ids_BL.at[rows_B1, at_BP].set(tokens_BP),
        probabilities_BL.at[rows_B1, at_BP].set(jnp.where(wanted_BP, probabilities_BP, 1.0)),
    )
