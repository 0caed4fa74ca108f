"""What stands behind [MASK]."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Encoding

from bert_jax.checkpoints import PretrainedModel
from bert_jax.heads import BertForMaskedLM
from bert_jax.pipelines.runner import BATCH_SIZE, Batch, Pipeline, forward
from bert_jax.vocabulary import check_texts
from transformer_jax.checks import Range, check_value, shown
from transformer_jax.texts import TextError

Fills = list[tuple[str, float]]


class Filled(NamedTuple):
    """What a text's masks can be.

    Attributes:
        masks: of each mask the likeliest (token, probability), best first.
        completions: the text with its masks filled in, the likeliest first: the k-th has the k-th likeliest token at
            each mask. A token that continues a word ("##s") is joined to it.
    """

    masks: list[Fills]
    completions: list[str]


@dataclasses.dataclass(frozen=True)
class FillMask(Pipeline):
    """Fills in each [MASK] of a text: what is filled in is a token, and the probabilities of all tokens add up to 1.

    Several masks of a text are filled each on its own: the model sees the others as masks.
    """

    model: BertForMaskedLM

    model_class: ClassVar[type[PretrainedModel]] = BertForMaskedLM

    def __call__(
        self, texts: Sequence[str], top_k: int = 5, batch_size: int = BATCH_SIZE
    ) -> list[Fills] | list[list[Fills]]:
        """For each text the `top_k` likeliest (token, probability) of its [MASK], best first.

        A text with several masks has a list of such lists, one a mask; `fills` has lists in any case, and the texts
        filled in. Of a text with more tokens than the model reads the end is left out, and a warning says of which.

        Raises:
            ValueError: no list of str, another top_k than 1 to the number of tokens, or parameters whose answers are
                not finite.
            TextError: a text without a [MASK], or with one behind the tokens that the model reads.
        """
        answers: list[Any] = [
            filled.masks[0] if len(filled.masks) == 1 else filled.masks
            for filled in self._fill(texts, top_k, batch_size)
        ]
        return answers

    def fills(self, texts: Sequence[str], top_k: int = 5, batch_size: int = BATCH_SIZE) -> list[Filled]:
        """As the call, but for each text a list of its masks even where that is one, and the text filled in."""
        return self._fill(texts, top_k, batch_size)

    def _fill(self, texts: Sequence[str], top_k: int, batch_size: int) -> list[Filled]:
        check_value("top_k", top_k, Annotated[int, Range(1, int(self._known_V.sum()))])
        texts = check_texts("texts", texts)
        encodings = self.tokenizer.encode(texts, max_length=self.longest)
        for index, encoding in enumerate(encodings):
            self._check_masks(index, texts[index], encoding)
        self.warn_of_cuts(encodings, self.longest, depth=2)

        def step(batch: Batch) -> Any:
            masks_BL = batch["input_ids"] == self.tokenizer.mask_id
            count = 1 << (int(masks_BL.sum(1).max()) - 1).bit_length()
            # The masks' columns first, then others, whose answers nobody reads.
            at_BP = np.argsort(~masks_BL, axis=1, kind="stable")[:, :count].astype(np.int32)
            return _likeliest(self.model, top_k, self.params, batch, at_BP, self._known_V)

        answers = []
        found = self.run(step, encodings, batch_size)
        for text, encoding, (ids_Pk, probabilities_Pk) in zip(texts, encodings, found, strict=True):
            places = self._places(encoding)
            tokens = [
                [str(self.tokenizer.backend.id_to_token(i)) for i in ids] for ids in ids_Pk[: len(places)].tolist()
            ]
            masks = [
                [*zip(of_mask, values.tolist(), strict=True)]
                for of_mask, values in zip(tokens, probabilities_Pk[: len(places)], strict=True)
            ]
            completions = [_filled(text, places, kth) for kth in zip(*tokens, strict=True)]
            answers.append(Filled(masks, completions))
        return answers

    def _check_masks(self, index: int, text: str, encoding: Encoding) -> None:
        reach = f"its first {self.longest} tokens"
        count = len(self._places(encoding))
        if count == 0:
            raise TextError("texts", index, f"({shown(text)}) needs a [MASK] in {reach}, and there is none")
        behind = sum(part.ids.count(self.tokenizer.mask_id) for part in encoding.overflowing)
        if behind:
            raise TextError("texts", index, f"({shown(text)}) has a [MASK] behind {reach}, which are all that is read")

    def _places(self, encoding: Encoding) -> list[tuple[int, int]]:
        """Where in the text the masks stand."""
        return [
            place for id_, place in zip(encoding.ids, encoding.offsets, strict=True) if id_ == self.tokenizer.mask_id
        ]

    @functools.cached_property
    def _known_V(self) -> np.ndarray:
        """Boolean: the ids that have a token."""
        known_V = np.zeros(self.model.config.vocab_size, bool)
        known_V[list(self.tokenizer.backend.get_vocab().values())] = True
        return known_V


def _filled(text: str, places: Sequence[tuple[int, int]], tokens: Sequence[str]) -> str:
    parts: list[str] = []
    end = 0
    for (start, stop), token in zip(places, tokens, strict=True):
        piece = re.fullmatch("##(.+)", token)
        parts += [text[end:start].rstrip(), piece[1]] if piece else [text[end:start], token]
        end = stop
    return "".join([*parts, text[end:]])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _likeliest(
    model: BertForMaskedLM, top_k: int, params: dict[str, Any], batch: Batch, at_BP: Array, known_V: Array
) -> tuple[Array, Array]:
    """Ids and probabilities [B, P, top_k]."""
    out = forward(model, params, batch, masked_positions=at_BP)
    logits_BPV = jnp.where(known_V[None, None, :], out.logits, -jnp.inf)
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits_BPV, axis=-1), top_k)
    return ids, probabilities
