"""From sentences to answers: jitted, with batches and lengths in buckets so that little is compiled."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bert_jax.heads import BertForMaskedLM
from bert_jax.tokenizer import BertTokenizer
from transformer_jax.checks import require

MAX_BATCH = 32
MIN_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Fills in the [MASK] of a sentence."""

    model: BertForMaskedLM
    params: dict[str, Any]
    tokenizer: BertTokenizer

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: DTypeLike = jnp.float32) -> "FillMask":
        """From a folder, or a repository of the hub, that holds a masked-LM model and its tokenizer."""
        model, params = BertForMaskedLM.from_pretrained(name, dtype)
        return cls(model, params, BertTokenizer.from_pretrained(name))

    def __call__(self, texts: Sequence[str], top_k: int = 5) -> list[list[tuple[str, float]]]:
        """For each text the `top_k` likeliest (token, probability), best first.

        Raises:
            ValueError: a text without, or with more than one, [MASK] among the tokens that the model reads.
        """
        c = self.model.config
        require(1 <= top_k <= c.vocab_size, f"top_k must be between 1 and {c.vocab_size}, not {top_k}")
        batch = self.tokenizer(texts, max_length=c.max_position_embeddings)
        masked_BL = batch["input_ids"] == self.tokenizer.mask_id
        for text, count in zip(texts, masked_BL.sum(1), strict=True):
            require(count == 1, f"each text needs one [MASK] in its first {masked_BL.shape[1]} tokens: {text!r}")
        answers: list[list[tuple[str, float]]] = []
        # Texts of like length go together.
        order = np.argsort(batch["attention_mask"].sum(1), kind="stable")
        for begin in range(0, len(order), MAX_BATCH):
            rows = order[begin : begin + MAX_BATCH]
            part = {name: array[rows] for name, array in batch.items()}
            padded = pad_to_bucket(part, c.max_position_embeddings, self.tokenizer.pad_id)
            at_B1 = (padded["input_ids"] == self.tokenizer.mask_id).argmax(1)[:, None].astype(np.int32)
            found = _fill(self.model, top_k, self.params, padded, at_B1)
            for ids, probabilities in zip(*(np.asarray(x)[: len(rows)] for x in found), strict=True):
                tokens = [self.tokenizer.backend.id_to_token(int(i)) or "[UNK]" for i in ids]
                answers.append(list(zip(tokens, map(float, probabilities), strict=True)))
        return [answers[i] for i in np.argsort(order)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fill(
    model: BertForMaskedLM, top_k: int, params: dict[str, Any], batch: dict[str, Array], at_B1: Array
) -> tuple[Array, Array]:
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    out: Any = model.apply({"params": params}, *inputs, masked_positions=at_B1)
    logits_BV = out.logits[:, 0]
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits_BV, axis=-1), top_k)
    return ids, probabilities


def pad_to_bucket(batch: dict[str, np.ndarray], longest: int, pad_id: int) -> dict[str, np.ndarray]:
    """Rows and columns up to the next power of two, columns at least 16 and at most `longest`; columns that hold
    nothing but padding are dropped first. Added rows attend to their first, padding, token."""
    used = int(batch["attention_mask"].sum(1).max())
    length = min(longest, max(MIN_LENGTH, 1 << (used - 1).bit_length()))
    rows = 1 << (len(batch["input_ids"]) - 1).bit_length()
    out = {}
    for name, array in batch.items():
        filled = np.full((rows, length), pad_id if name == "input_ids" else 0, array.dtype)
        filled[: len(array), :used] = array[:, :used]
        out[name] = filled
    out["attention_mask"][len(batch["input_ids"]) :, 0] = 1
    return out
