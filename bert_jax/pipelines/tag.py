"""Names and other entities in texts."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
from jax import Array
from tokenizers import Encoding

from bert_jax.checkpoints import PretrainedModel
from bert_jax.heads import BertForTokenClassification
from bert_jax.pipelines.runner import BATCH_SIZE, Batch, Pipeline, forward
from bert_jax.vocabulary import check_texts

OUTSIDE = "O"


class Entity(NamedTuple):
    """A piece of a text with a label.

    Attributes:
        label: of the tags, without "B-" and "I-".
        text: `text[start:end]` of the text that was given.
        score: the mean probability of its words' tags.
    """

    label: str
    text: str
    start: int
    end: int
    score: float


class _Word(NamedTuple):
    tag: str
    score: float
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class TokenTagger(Pipeline):
    """Finds entities with a model whose `config.id2label` are BIO tags (Devlin et al. 2019, section 5.3).

    The tag of a word is that of its first token. Words are those of the tokenizer: each punctuation mark, for one, is a
    word. A model that was trained with other words ("@user") may do better with `tags`, which takes them as they are.
    """

    model: BertForTokenClassification

    model_class: ClassVar[type[PretrainedModel]] = BertForTokenClassification

    def __call__(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> list[list[Entity]]:
        """The entities of each text, in their order.

        An entity begins with "B-X", or with "I-X" behind anything but an X, and goes on with "I-X". Tags without "B-"
        or "I-" count as "I-". Of texts with more tokens than the model reads the end is left out, and a warning says
        of which texts.

        Raises:
            ValueError: no list of str, or parameters whose answers are not finite.
        """
        texts = check_texts("texts", texts)
        encodings = self.tokenizer.encode(texts, max_length=self.longest)
        self.warn_of_cuts(encodings, self.longest)
        found = self._tagged(encodings, batch_size)
        return [[*_entities(text, words.values())] for text, words in zip(texts, found, strict=True)]

    def tags(self, sentences: Sequence[Sequence[str]], batch_size: int = BATCH_SIZE) -> list[list[str]]:
        """A tag for each word of sentences that are split already; "O" for words without any token, and those cut off.

        Raises ValueError and warns as the call.
        """
        encodings = self.tokenizer.encode_words(sentences, self.longest)
        self.warn_of_cuts(encodings, self.longest)
        found = self._tagged(encodings, batch_size)
        return [
            [words[index].tag if index in words else OUTSIDE for index in range(len(sentence))]
            for sentence, words in zip(sentences, found, strict=True)
        ]

    def _tagged(self, encodings: Sequence[Encoding], batch_size: int) -> list[dict[int, _Word]]:
        """Of each encoding its words by their ids, in order."""
        step = functools.partial(_best, self.model, self.params)
        labels = self.model.config.id2label
        found = []
        for encoding, (best_L, scores_L) in zip(encodings, self.run(step, encodings, batch_size), strict=True):
            words: dict[int, _Word] = {}
            for at, (word, (start, end)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
                if word in words:
                    words[word] = words[word]._replace(end=end)
                elif word is not None:
                    words[word] = _Word(labels[best_L[at]], float(scores_L[at]), start, end)
            found.append(words)
        return found


def _entities(text: str, words: Iterable[_Word]) -> Iterator[Entity]:
    group: list[_Word] = []
    label = OUTSIDE
    for word in [*words, _Word(OUTSIDE, 0.0, 0, 0)]:
        prefixed = word.tag[:2] in ("B-", "I-")
        own = word.tag[2:] if prefixed else word.tag
        if group and (own != label or word.tag.startswith("B-")):
            start, end = group[0].start, group[-1].end
            yield Entity(label, text[start:end], start, end, sum(part.score for part in group) / len(group))
            group = []
        label = own
        if word.tag != OUTSIDE:
            group.append(word)


@functools.partial(jax.jit, static_argnums=0)
def _best(model: BertForTokenClassification, params: dict[str, Any], batch: Batch) -> tuple[Array, Array]:
    """The likeliest label of each token and its probability, [B, L]."""
    out = forward(model, params, batch)
    probabilities_BLE = jax.nn.softmax(out.logits)
    return probabilities_BLE.argmax(-1), probabilities_BLE.max(-1)
