"""The masked-LM objective (Devlin et al. 2019, section 3.1 and appendix A.1), drawn on the device."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from transformer_jax.checks import Range, Size, as_array, as_ids, check_ids, check_value, require


class MaskedBatch(NamedTuple):
    """Masked inputs and what to predict.

    Attributes:
        input_ids_BL: the ids, some of them replaced; dtype as given.
        positions_BP: int32, ascending in each row; unused slots behind them are 0.
        labels_BP: int32, the ids that stood there; unused slots are 0.
        weights_BP: float32, 1 for a prediction, 0 for an unused slot.
    """

    input_ids_BL: Array
    positions_BP: Array
    labels_BP: Array
    weights_BP: Array


def maskable(input_ids_BL: ArrayLike, special_ids: ArrayLike) -> Array:
    """Boolean [B, L]: the tokens that are none of the special ids (padding among them).

    Raises ValueError unless both are integers, [B, L] and [n].
    """
    ids_BL1 = jnp.asarray(as_ids("input_ids_BL", input_ids_BL))[:, :, None]
    special = jnp.asarray(as_ids("special_ids", as_array("special_ids", special_ids)[None]))
    return jnp.all(ids_BL1 != special[None], axis=-1)


def mask_tokens(
    input_ids_BL: Array,
    maskable_BL: Array,
    key: Array,
    *,
    num_predictions: int,
    mask_id: int,
    vocab_size: int,
    rate: float = 0.15,
    continuation_V: ArrayLike | None = None,
    special_ids: Sequence[int] | np.ndarray | None = None,
) -> MaskedBatch:
    """Chooses min(P, max(1, round(rate * n))) of the n maskable tokens of each row, without replacement.

    Of those chosen 80 % become [MASK], 10 % a random token and 10 % stay what they are. All of it is a function of
    the key and of an element's row and column: the same bits on every mesh. Callers pass `fold_in(key(seed), step)`.

    Args:
        input_ids_BL: token ids.
        maskable_BL: boolean, see `maskable`; nothing else is ever chosen.
        num_predictions: P, the slots of a row (static).
        continuation_V: boolean, True for "##" pieces: then all pieces of a word are chosen together, words being
            drawn in random order, and one that does not fit into what is left of the row's budget is skipped.
        special_ids: ids that are never drawn as random tokens. By default those up to `mask_id`, where BERT's
            vocabularies keep their special and unused tokens.

    Raises:
        ValueError: arrays of another dtype or shape, ids out of the vocabulary (where values are at hand), P not
            between 1 and L, rate not between 0 and 1, or no id is left to draw.
    """
    check_value("vocab_size", vocab_size, Size)
    check_value("num_predictions", num_predictions, Size)
    check_value("rate", rate, Annotated[float, Range(0, 1, open_low=True)])
    input_ids_BL = as_ids("input_ids_BL", input_ids_BL)
    check_ids("input_ids_BL", input_ids_BL, vocab_size, "vocab_size")
    input_ids_BL = jnp.asarray(input_ids_BL)  # int32 from here on: what is too large for it was seen
    check_ids("mask_id", mask_id, vocab_size, "vocab_size")
    _check_booleans("maskable_BL", maskable_BL, input_ids_BL.shape)
    if continuation_V is not None:
        _check_booleans("continuation_V", continuation_V, (vocab_size,))
    L, P = input_ids_BL.shape[1], num_predictions
    require(1 <= P <= L, f"num_predictions must be between 1 and the row's {L} tokens, not {P}")
    special = np.arange(mask_id + 1) if special_ids is None else np.asarray([*special_ids] or np.arange(0))
    check_ids("special_ids", special, vocab_size, "vocab_size")
    ordinary = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), special)
    require(ordinary.size > 0, f"mask_id {mask_id} of {vocab_size} leaves no id to draw: give special_ids")

    choice_key, action_key, token_key = jax.random.split(key, 3)
    chosen_BL = _choose(input_ids_BL, maskable_BL, choice_key, P, rate, continuation_V)
    action_BL = jax.random.uniform(action_key, input_ids_BL.shape)
    drawn_BL = jax.random.randint(token_key, input_ids_BL.shape, 0, ordinary.size)
    random_BL = jnp.take(jnp.asarray(ordinary), drawn_BL).astype(input_ids_BL.dtype)
    replaced_BL = jnp.where(action_BL < 0.8, mask_id, jnp.where(action_BL < 0.9, random_BL, input_ids_BL))

    column_L = jnp.arange(L, dtype=jnp.int32)[None, :]
    slots_BP = jnp.sort(jnp.where(chosen_BL, column_L, L), axis=-1)[:, :P]
    used_BP = slots_BP < L
    positions_BP = jnp.where(used_BP, slots_BP, 0)
    labels_BP = jnp.where(used_BP, jnp.take_along_axis(input_ids_BL, positions_BP, axis=1), 0)
    return MaskedBatch(
        jnp.where(chosen_BL, replaced_BL, input_ids_BL).astype(input_ids_BL.dtype),
        positions_BP,
        labels_BP.astype(jnp.int32),
        used_BP.astype(jnp.float32),
    )


def _check_booleans(name: str, mask: ArrayLike, shape: tuple[int, ...]) -> None:
    found = (jnp.result_type(mask), jnp.shape(mask))
    require(found == (jnp.bool_, shape), f"{name} must be booleans {[*shape]}, not {found[0]} {[*found[1]]}")


def _choose(
    ids_BL: Array, maskable_BL: Array, key: Array, slots: int, rate: float, continuation_V: ArrayLike | None
) -> Array:
    """Boolean [B, L]: the tokens to predict."""
    B, L = ids_BL.shape
    # Rounded in Python, half to even as in the original: float32 on the device could differ at .5.
    budgets = np.array([min(n, slots, max(1, round(rate * n))) for n in range(L + 1)], np.int32)
    budget_B1 = jnp.take(jnp.asarray(budgets), jnp.sum(maskable_BL, axis=1, keepdims=True))
    column_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None, :], (B, L))
    if continuation_V is None:
        starts_BL, size_BL = maskable_BL, maskable_BL.astype(jnp.int32)
    else:
        starts_BL, size_BL = _words(ids_BL, maskable_BL, jnp.asarray(continuation_V), column_BL)
    # Words in random order; columns where no word starts go last, with size 0.
    order_BL = jnp.argsort(jnp.where(starts_BL, jax.random.uniform(key, (B, L)), 2.0), axis=1, stable=True)
    sizes_BL = jnp.take_along_axis(size_BL, order_BL, axis=1)
    if continuation_V is None:
        taken_BL = (sizes_BL > 0) & (jnp.cumsum(sizes_BL, axis=1) <= budget_B1)
    else:
        taken_BL = _take_what_fits(sizes_BL, budget_B1)
    chosen_BL = jnp.take_along_axis(taken_BL, jnp.argsort(order_BL, axis=1), axis=1)
    if continuation_V is None:
        return chosen_BL
    first_BL = jax.lax.cummax(jnp.where(starts_BL, column_BL, 0), axis=1)
    return maskable_BL & jnp.take_along_axis(chosen_BL, first_BL, axis=1)


def _words(ids_BL: Array, maskable_BL: Array, continuation_V: Array, column_BL: Array) -> tuple[Array, Array]:
    """Where words start, and there the number of their pieces (0 elsewhere)."""
    L = ids_BL.shape[1]
    before_BL = jnp.pad(maskable_BL, ((0, 0), (1, 0)))[:, :-1]
    # A "##" piece behind a special token is what truncation left of a word: it starts one.
    continues_BL = maskable_BL & before_BL & jnp.take(continuation_V, ids_BL)
    starts_BL = maskable_BL & ~continues_BL
    continued_BL = jnp.pad(continues_BL, ((0, 0), (0, 1)))[:, 1:]
    last_BL = jax.lax.cummin(jnp.where(continued_BL, L, column_BL), axis=1, reverse=True)
    return starts_BL, jnp.where(starts_BL, last_BL - column_BL + 1, 0)


def _take_what_fits(sizes_BL: Array, budget_B1: Array) -> Array:
    """Goes through sizes [B, L] from the left and takes each that fits into what is left of the row's budget.

    In rounds, not one by one: what fits before the first size that does not is taken at once, then all that exceed
    what is left are out. Two or three rounds suffice in practice.
    """

    def unfinished(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[1])

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        taken_BL, open_BL = state
        return still_open(taken_BL | (open_BL & (jnp.cumsum(jnp.where(open_BL, sizes_BL, 0), 1) <= left(taken_BL))))

    def left(taken_BL: Array) -> Array:
        return budget_B1 - jnp.sum(jnp.where(taken_BL, sizes_BL, 0), axis=1, keepdims=True)

    def still_open(taken_BL: Array) -> tuple[Array, Array]:
        return taken_BL, (sizes_BL > 0) & ~taken_BL & (sizes_BL <= left(taken_BL))

    return jax.lax.while_loop(unfinished, step, still_open(jnp.zeros_like(sizes_BL, bool)))[0]
