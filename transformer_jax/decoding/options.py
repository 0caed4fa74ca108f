"""What a search stops at and how it scores."""

from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from transformer_jax.checks import Id, Range

Length = Annotated[int, Range(2, 2**20)]  # a start and an end at least
Beam = Annotated[int, Range(1, 1024)]
Penalty = Annotated[float, Range(-5, 5)]  # beyond, powers of long outputs overflow float32
Preset = Literal["hf", "paper", "marian"]

BROKEN = -1  # no id of anything
# Far below any sum of log-probabilities, and finite so that differences of two of them are no NaN.
NEVER = -1.0e9


class SearchOptions(NamedTuple):
    """What a search stops at and how it scores.

    Attributes:
        max_length: tokens of an output, its start token and end token included.
        preset: "hf" divides a log-probability by length^length_penalty (Hugging Face's `generate`); "paper" by
            ((5 + length) / 6)^length_penalty (Wu et al. 2016, equation 14, as Vaswani et al. 2017 use it); "marian" as
            "hf", but the beam stops as Marian's does: it narrows by one with each output that ends, and the search is
            over when none is left, whatever `early_stopping` says. The length counts the end token, not the start
            token.
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
    preset: Preset = "hf"

    def penalty(self, length: Array | int) -> Array:
        """What the log-probability of `length` tokens is divided by."""
        length = jnp.asarray(length, jnp.float32)
        base = (5.0 + length) / 6.0 if self.preset == "paper" else length
        return base**self.length_penalty
