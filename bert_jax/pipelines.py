"""From sentences to answers: jitted, with batches and lengths in buckets so that little is compiled."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bert_jax.heads import BertForMaskedLM
from bert_jax.tokenizer import BertTokenizer
from bert_jax.vocabulary import check_texts
from transformer_jax.checks import Range, check_value, listed, require, shown

MAX_BATCH = 32
MIN_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Fills in the [MASK] of a sentence.

    Raises:
        ValueError: the tokenizer has more tokens than the model. Fewer is normal: what is filled in is a token, and
            the probabilities of all tokens add up to 1.
    """

    model: BertForMaskedLM
    params: dict[str, Any]
    tokenizer: BertTokenizer

    def __post_init__(self) -> None:
        tokens, rows = self.tokenizer.vocab_size, self.model.config.vocab_size
        require(tokens <= rows, f"the tokenizer has {tokens} tokens, but the model was made for {rows} (vocab_size)")

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: DTypeLike = jnp.float32) -> "FillMask":
        """From a folder, or a repository of the hub, that holds a masked-LM model and its tokenizer."""
        model, params = BertForMaskedLM.from_pretrained(name, dtype)
        tokenizer = BertTokenizer.from_pretrained(name)
        try:
            return cls(model, params, tokenizer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    @functools.cached_property
    def _known_V(self) -> np.ndarray:
        """Boolean: the ids that have a token."""
        known_V = np.zeros(self.model.config.vocab_size, bool)
        known_V[list(self.tokenizer.backend.get_vocab().values())] = True
        return known_V

    def __call__(self, texts: Sequence[str], top_k: int = 5) -> list[list[tuple[str, float]]]:
        """For each text the `top_k` likeliest (token, probability), best first.

        Of a text with more tokens than the model reads the end is left out, and a warning says of which texts.

        Raises:
            ValueError: no list of str, a text without, or with more than one, [MASK] among the tokens that the model
                reads, another top_k than 1 to the number of tokens, or parameters whose answers are not finite.
        """
        c = self.model.config
        check_value("top_k", top_k, Annotated[int, Range(1, int(self._known_V.sum()))])
        texts = check_texts("texts", texts)
        encodings = self.tokenizer.encode(texts, max_length=c.max_position_embeddings)
        batch = self.tokenizer.pad(encodings)
        counts = (batch["input_ids"] == self.tokenizer.mask_id).sum(1)
        reach = f"its first {c.max_position_embeddings} tokens"
        for index, count in enumerate(counts):
            where = f"texts[{index}] ({shown(texts[index])})"
            require(count == 1, f"{where} needs one [MASK] in {reach}, and there are {count}")
        cut = [str(index) for index, encoding in enumerate(encodings) if encoding.overflowing]
        if cut:
            warnings.warn(
                f"the model reads of a text {reach}: the end of texts {listed(cut)} is left out", stacklevel=2
            )
        answers: list[list[tuple[str, float]]] = []
        # Texts of like length go together.
        order = np.argsort(batch["attention_mask"].sum(1), kind="stable")
        for begin in range(0, len(order), MAX_BATCH):
            rows = order[begin : begin + MAX_BATCH]
            part = {name: array[rows] for name, array in batch.items()}
            padded = pad_to_bucket(part, c.max_position_embeddings, self.tokenizer.pad_id)
            at_B1 = (padded["input_ids"] == self.tokenizer.mask_id).argmax(1)[:, None].astype(np.int32)
            found = _fill(self.model, top_k, self.params, padded, at_B1, self._known_V)
            for ids, probabilities in zip(*(np.asarray(x)[: len(rows)] for x in found), strict=True):
                finite = bool(np.isfinite(probabilities).all())
                require(finite, "the model's answers are not finite: its parameters hold nan, infinity or far too much")
                tokens: list[Any] = [self.tokenizer.backend.id_to_token(i) for i in ids.tolist()]
                answers.append(list(zip(tokens, map(float, probabilities), strict=True)))
        return [answers[i] for i in np.argsort(order)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fill(
    model: BertForMaskedLM, top_k: int, params: dict[str, Any], batch: dict[str, Array], at_B1: Array, known_V: Array
) -> tuple[Array, Array]:
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    out: Any = model.apply({"params": params}, *inputs, masked_positions=at_B1)
    logits_BV = jnp.where(known_V[None, :], out.logits[:, 0], -jnp.inf)
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
