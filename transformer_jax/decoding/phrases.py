"""Phrases that outputs contain: how far an output is with them, and how a beam is shared out until it has them all.

Dynamic beam allocation (Post and Vilar 2018), for all sentences of a batch at once as Hu et al. 2019 have it: the
hypotheses that have equally many tokens of their phrases are a bank, and the beam takes the best of every bank before
the second best of any. Two things differ. Slots are shared among the banks that have a hypothesis, not among all that
there may be, so that a narrow beam is not driven to begin every phrase at once; where it is narrower than these, banks
are taken by their scores. And how far a phrase is follows from Knuth, Morris and Pratt's automaton: a phrase that
breaks off goes on from the longest beginning of it that the output ends with.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.checks import require, shown
from transformer_jax.decoding.options import NEVER


class Phrases(NamedTuple):
    """What the outputs of each sentence contain: ids [B, C, P] of C phrases, and how many of a phrase count [B, C].

    A phrase of 0 tokens is none. Different phrases may overlap in an output; one that is given n times comes n times,
    one behind the other.
    """

    ids_BCP: Array
    lengths_BC: Array

    @classmethod
    def of(cls, sentences: Sequence[Sequence[Sequence[int]]]) -> "Phrases":
        """Of lists of ids, filled up to powers of two, so that few programs are compiled."""
        most, longest = max(map(len, sentences)), max((len(ids) for own in sentences for ids in own), default=0)
        B, C, P = len(sentences), *(1 << max(0, size - 1).bit_length() for size in (most, longest))
        ids_BCP, lengths_BC = np.zeros((B, C, P), np.int32), np.zeros((B, C), np.int32)
        for row, own in enumerate(sentences):
            for i, ids in enumerate(own):
                ids_BCP[row, i, : len(ids)], lengths_BC[row, i] = ids, len(ids)
        return cls(jnp.asarray(ids_BCP), jnp.asarray(lengths_BC))


def check_phrases(phrases: Sequence[Sequence[int]], vocabulary: int, never: Sequence[int], room: int) -> None:
    """Checks those of one sentence.

    Args:
        never: ids that no output has in its middle: the end, and what fills up behind it.
        room: tokens between the start and the end of its output.

    Raises:
        ValueError: a phrase is empty or has ids that cannot come, or all have more tokens than there is room for, which
            is not to say that none can overlap. The message is to stand behind the sentence's name.
    """
    require(_are_several(phrases), f"give a list of phrases, not {shown(phrases)}")
    for i, ids in enumerate(phrases):
        require(_are_several(ids), f"phrase {i} must be a list of ids, not {shown(ids)}")
        integers = all(isinstance(id_, int | np.integer) and not isinstance(id_, bool) for id_ in ids)
        require(len(ids) > 0 and integers, f"phrase {i} must be one id or more, not {shown(ids)}")
        for id_ in ids:
            require(0 <= id_ < vocabulary, f"phrase {i} has the id {id_}, but ids are from 0 to {vocabulary - 1}")
            require(id_ not in never, f"phrase {i} has the id {id_}, which is the end or padding: it is in no output")
    tokens = sum(map(len, phrases))
    require(tokens <= room, f"{len(phrases)} phrases have {tokens} tokens, but there is room for {room}")


def _are_several(x: Any) -> bool:
    return isinstance(x, Sequence | np.ndarray) and not isinstance(x, str | bytes)


class Progress(NamedTuple):
    """How far the running outputs are with their phrases; all arrays have a row a sentence.

    Attributes:
        ids_BCP, lengths_BC: see `Phrases`.
        borders_BCPP: [.., j, i] whether the first i tokens of a phrase are also the last i of its first j.
        before_BC: the phrase of the same tokens that must come before it; -1 for none.
        matched_BWC: the tokens at the beginning of a phrase that an output ends with; all, once it has had them all.
    """

    ids_BCP: Array
    lengths_BC: Array
    borders_BCPP: Array
    before_BC: Array
    matched_BWC: Array

    @classmethod
    def begin(cls, phrases: Phrases, beams: int) -> "Progress":
        """In front of the first token."""
        ids_BCP, lengths_BC = phrases.ids_BCP.astype(jnp.int32), phrases.lengths_BC.astype(jnp.int32)
        B, C, P = ids_BCP.shape
        known_BCP = jnp.where(jnp.arange(P)[None, None] < lengths_BC[..., None], ids_BCP, -1)
        same_BCC = jnp.all(known_BCP[:, :, None] == known_BCP[:, None], axis=-1)
        at_1C = jnp.arange(C)[None]
        earlier_BCC = same_BCC & (at_1C < at_1C.T)[None]
        before_BC = jnp.max(jnp.where(earlier_BCC, at_1C[None], -1), axis=-1)
        borders_BCPP = jax.vmap(jax.vmap(_borders))(ids_BCP)
        return cls(ids_BCP, lengths_BC, borders_BCPP, before_BC, jnp.zeros((B, beams, C), jnp.int32))

    def next_ids(self) -> tuple[Array, Array]:
        """The token by which an output comes further with each phrase [B, W, C], and whether it may."""
        B, _, C = self.matched_BWC.shape
        at_BWC = jnp.minimum(self.matched_BWC, self.ids_BCP.shape[2] - 1)
        ids_BWC = self.ids_BCP[jnp.arange(B)[:, None, None], jnp.arange(C)[None, None, :], at_BWC]
        return ids_BWC, self._may_begin(self.matched_BWC) & ~self._is_met(self.matched_BWC)

    def behind(self, parents_BN: Array, token_BN: Array) -> Array:
        """What is matched [B, N, C] when these tokens come behind these beams."""
        B, C, P = self.ids_BCP.shape
        matched_BNC = jnp.take_along_axis(self.matched_BWC, parents_BN[:, :, None], axis=1)
        is_met_BNC = self._is_met(matched_BNC)
        rows_B11, rows_11C = jnp.arange(B)[:, None, None], jnp.arange(C)[None, None, :]
        goes_on_BNCP = self.borders_BCPP[rows_B11, rows_11C, jnp.minimum(matched_BNC, P - 1)]
        goes_on_BNCP &= self.ids_BCP[:, None] == token_BN[:, :, None, None]
        longest_BNC = jnp.max(jnp.where(goes_on_BNCP, jnp.arange(1, P + 1)[None, None, None], 0), axis=-1)
        return jnp.where(is_met_BNC, matched_BNC, jnp.where(self._may_begin(matched_BNC), longest_BNC, 0))

    def order(self, scores_BN: Array, matched_BNC: Array, room_BN: Array) -> tuple[Array, Array]:
        """The candidates in the order in which a beam takes them [B, N], and which are possible.

        The best of the furthest bank comes first, so that some output has all phrases as soon as it can.

        Args:
            room_BN: tokens that may still follow each candidate. One whose phrases need more is not possible.
        """
        is_met_BNC, lengths_B1C = self._is_met(matched_BNC), self.lengths_BC[:, None]
        missing_BN = jnp.max(jnp.where(is_met_BNC, 0, lengths_B1C - matched_BNC), axis=-1)
        bank_BN = jnp.sum(jnp.where(is_met_BNC, lengths_B1C, 0), axis=-1)
        bank_BN += jnp.max(jnp.where(is_met_BNC, 0, matched_BNC), axis=-1)
        possible_BN = (scores_BN > NEVER / 2) & (missing_BN <= room_BN)
        place_BN = jnp.broadcast_to(jnp.arange(scores_BN.shape[1])[None], scores_BN.shape)
        banks = (jnp.where(possible_BN, -bank_BN, 1), -scores_BN, place_BN)
        bank_BN, worse_BN, at_BN = jax.lax.sort(banks, dimension=1, num_keys=2)
        begins_BN = bank_BN != jnp.pad(bank_BN[:, :-1], [(0, 0), (1, 0)], constant_values=2)
        round_BN = place_BN - jax.lax.cummax(jnp.where(begins_BN, place_BN, 0), axis=1)
        round_BN = jnp.where(bank_BN > 0, place_BN.shape[1], round_BN).at[:, 0].set(-1)
        return jax.lax.sort((round_BN, worse_BN, at_BN), dimension=1, num_keys=2)[2], possible_BN

    def _is_met(self, matched_BNC: Array) -> Array:
        return matched_BNC >= self.lengths_BC[:, None]

    def _may_begin(self, matched_BNC: Array) -> Array:
        """Whether no phrase of the same tokens must come first."""
        before_B1C = self.before_BC[:, None]
        done_BNC = jnp.take_along_axis(self._is_met(matched_BNC), jnp.maximum(before_B1C, 0), axis=2)
        return (before_B1C < 0) | done_BNC


def _borders(ids_P: Array) -> Array:
    """Boolean [P, P]: [j, i] whether the first i tokens of a phrase are also the last i of its first j."""
    at_P = jnp.arange(len(ids_P))
    from_PP = jnp.take(ids_P, at_P[:, None] + at_P[None, :], mode="fill", fill_value=-1)  # [s]: from place s on
    alike_P = jnp.sum(jnp.cumprod(from_PP == ids_P[None], axis=1), axis=1)  # so many there as at the beginning
    left_out_PP = at_P[:, None] - at_P[None, :]
    return (left_out_PP >= 0) & (jnp.take(alike_P, jnp.maximum(left_out_PP, 0)) >= at_P[None])
