"""Constraints: small functions on the scores of the next token, which a search applies one after the other.

Each is a pytree that can be called: `constraint(scores_BWV, so_far) -> scores_BWV`. What holds for all sentences is
fixed when a program is compiled; what is a sentence's own are arrays with a leading axis B. A score of -infinity means
never. Beam search gives log-probabilities, sampling and greedy search logits, as Hugging Face's `generate` has it.

Where logits are of a short list, scores have a column for each of its ids: a constraint asks `so_far.column` where an
id is, and says so by `knows_columns = True`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, dataclass_transform

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from transformer_jax.checks import LARGEST, Id, Range, check_fields, require, shown
from transformer_jax.decoding.columns import Columns, column_of
from transformer_jax.decoding.top import top_k


class SoFar(NamedTuple):
    """What constraints look at.

    Attributes:
        ids_BWT: the outputs so far, start token first; what stands behind `length` means nothing.
        length: tokens so far, the start token included, int32 scalar.
        limit_B: tokens that an output may have at most, likewise.
        columns: those of the scores, where they are not the whole vocabulary.
    """

    ids_BWT: Array
    length: Array
    limit_B: Array
    columns: Columns | None = None

    def column(self, ids: ArrayLike | Sequence[int]) -> Array:
        """Where the scores of ids stand; past the last one for what is not in a short list."""
        return column_of(self.columns, jnp.asarray(ids, jnp.int32))


Constraint = Callable[[Array, SoFar], Array]
_Positive = Annotated[float, Range(0, open_low=True)]
_Count = Annotated[int, Range(1, LARGEST)]


def _static() -> Any:
    return flax.struct.field(pytree_node=False)


@dataclass_transform(frozen_default=True)
def _constraint(cls: type) -> Any:
    """A pytree whose numbers are checked."""
    cls.__post_init__ = check_fields  # type: ignore[attr-defined]
    cls.knows_columns = True  # type: ignore[attr-defined]
    return flax.struct.dataclass(cls)


def constrain_scores(constraints: Sequence[Constraint], scores_BWV: Array, so_far: SoFar) -> Array:
    """The scores behind all constraints."""
    for constraint in constraints:
        scores_BWV = constraint(scores_BWV, so_far)
    return scores_BWV


def check_columns(constraints: Sequence[Constraint]) -> None:
    """Raises ValueError for constraints that would take the columns of a short list for ids."""
    foreign = [constraint for constraint in constraints if not getattr(constraint, "knows_columns", False)]
    words = f"{shown(foreign)} do not say that they do"
    require(not foreign, f"constraints beside a short list must know its columns, see SoFar.column: {words}")


@_constraint
class Forbidden:
    """Tokens that never come, such as a padding token."""

    ids: tuple[Id, ...] = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        return scores_BWV.at[..., so_far.column(self.ids)].set(-jnp.inf, mode="drop")


@_constraint
class MinimumLength:
    """No end before so many tokens, the start token among them, stand in front of it."""

    length: Id = _static()
    eos_id: Id = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        early = so_far.length < self.length
        end = so_far.column(self.eos_id)
        return scores_BWV.at[..., end].set(jnp.where(early, -jnp.inf, scores_BWV[..., end]))


@_constraint
class ForcedStart:
    """The first token behind the start token is this one, for which an output is not marked down."""

    id: Id = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        is_it_V = jnp.arange(scores_BWV.shape[-1]) == so_far.column(self.id)
        forced_V = jnp.where(is_it_V, 0.0, -jnp.inf)
        return jnp.where(so_far.length == 1, forced_V[None, None], scores_BWV)


@_constraint
class EndAtLimit:
    """The last token that an output has room for is its end, for which it is not marked down."""

    eos_id: Id = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        last_B11 = (so_far.length == so_far.limit_B - 1)[:, None, None]
        is_end_V = jnp.arange(scores_BWV.shape[-1]) == so_far.column(self.eos_id)
        return jnp.where(last_B11, jnp.where(is_end_V, 0.0, -jnp.inf)[None, None], scores_BWV)


@_constraint
class Prefix:
    """What outputs begin with behind their start token: ids [B, P], and how many of a row count [B]."""

    ids_BP: Array
    lengths_B: Array

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        at = jnp.minimum(so_far.length - 1, self.ids_BP.shape[1] - 1)
        wanted_B = jax.lax.dynamic_index_in_dim(self.ids_BP, at, axis=1, keepdims=False)
        is_wanted_BV = jnp.arange(scores_BWV.shape[-1])[None, :] == so_far.column(wanted_B)[:, None]
        free_B = so_far.length - 1 >= self.lengths_B
        return jnp.where((free_B[:, None] | is_wanted_BV)[:, None, :], scores_BWV, -jnp.inf)


@_constraint
class RepetitionPenalty:
    """Scores of tokens that an output has already are divided, or where negative multiplied, by a penalty above 1.

    Keskar et al. 2019, section 4.1, in the form that Hugging Face gave it.
    """

    penalty: _Positive = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        seen_BWV = _seen(so_far, scores_BWV.shape[-1])
        marked_down = jnp.where(scores_BWV < 0, scores_BWV * self.penalty, scores_BWV / self.penalty)
        return jnp.where(seen_BWV, marked_down, scores_BWV)


def _seen(so_far: SoFar, vocabulary: int) -> Array:
    """Boolean [B, W, V]: which tokens the outputs have."""
    B, W, T = so_far.ids_BWT.shape
    known_T = jnp.arange(T) < so_far.length
    at_BWT = jnp.where(known_T[None, None], so_far.column(so_far.ids_BWT), vocabulary)  # out of range: dropped
    rows_B11, rows_1W1 = jnp.arange(B)[:, None, None], jnp.arange(W)[None, :, None]
    return jnp.zeros((B, W, vocabulary), bool).at[rows_B11, rows_1W1, at_BWT].set(True, mode="drop")


@_constraint
class NoRepeatedNgram:
    """No n tokens in a row that an output has already (Paulus et al. 2018, section 2.5)."""

    size: _Count = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        B, W, T = so_far.ids_BWT.shape
        n, V = self.size, scores_BWV.shape[-1]
        if n > T:
            return scores_BWV
        starts_S = jnp.arange(T - n + 1)
        repeats_BWS = jnp.broadcast_to((starts_S + n <= so_far.length)[None, None], (B, W, len(starts_S)))
        for i in range(n - 1):  # the last n - 1 tokens against those at each start
            last_BW1 = jax.lax.dynamic_slice_in_dim(so_far.ids_BWT, so_far.length - n + 1 + i, 1, axis=2)
            repeats_BWS &= so_far.ids_BWT[:, :, i : i + len(starts_S)] == last_BW1
        repeats_BWS &= so_far.length >= n
        next_BWS = jnp.where(repeats_BWS, so_far.column(so_far.ids_BWT[:, :, n - 1 :]), V)
        rows_B11, rows_1W1 = jnp.arange(B)[:, None, None], jnp.arange(W)[None, :, None]
        return scores_BWV.at[rows_B11, rows_1W1, next_BWS].set(-jnp.inf, mode="drop")


@_constraint
class Renormalized:
    """What the constraints before it have left becomes a distribution again."""

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        return jax.nn.log_softmax(scores_BWV)


# --- of sampling: which tokens are drawn from, and how boldly ---------------------------------------------------------


@_constraint
class Temperature:
    """Scores divided by a temperature: below 1 nearer to the best token, above 1 nearer to chance."""

    temperature: _Positive = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        return scores_BWV / self.temperature


@_constraint
class TopK:
    """The k best tokens alone (Fan et al. 2018, section 5.1), and what is as good as the last of them."""

    k: _Count = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        k = min(self.k, scores_BWV.shape[-1])
        least_BW1 = top_k(scores_BWV, k)[0][..., -1:]
        return jnp.where(scores_BWV < least_BW1, -jnp.inf, scores_BWV)


@_constraint
class TopP:
    """The fewest best tokens whose probabilities come to p (nucleus sampling, Holtzman et al. 2020, section 3.1)."""

    p: Annotated[float, Range(0, 1, open_low=True)] = _static()

    def __call__(self, scores_BWV: Array, so_far: SoFar) -> Array:
        order_BWV = jnp.argsort(scores_BWV, axis=-1)  # the worst first: their sum is exact where it decides
        sorted_BWV = jnp.take_along_axis(scores_BWV, order_BWV, axis=-1)
        below_BWV = jnp.cumsum(jax.nn.softmax(sorted_BWV), axis=-1) <= 1 - self.p
        below_BWV = below_BWV.at[..., -1].set(False)
        least_BW1 = jnp.min(jnp.where(below_BWV, jnp.inf, sorted_BWV), axis=-1, keepdims=True)
        return jnp.where(scores_BWV < least_BW1, -jnp.inf, scores_BWV)
