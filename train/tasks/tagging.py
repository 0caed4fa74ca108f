"""A tag for each word: names, slots."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from bert_jax import BertConfig, BertForTokenClassification, BertTokenizer
from train import metrics
from train.data.conll import Tagged, is_conll, read_tagged
from train.data.requests import Request
from train.errors import InputError
from train.state import Batch, Sums
from train.tasks.base import NO_LABEL, Features, FinetuneTask, Settings, known_label, single_example
from train.tasks.classification import confusion_of
from transformer_jax import cross_entropy


class Tagging(FinetuneTask):
    """Each word is tagged by the output of its first piece (Devlin et al. 2019, section 5.3); BIO, by seqeval."""

    roles: ClassVar[Mapping[str, str]] = {"tokens": "tokens", "tags": "tags"}
    head = BertForTokenClassification
    terms = ("loss_per_word",)

    best = ("eval/f1", "max")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.data and all(map(is_conll, settings.data)) and (settings.columns.tokens or settings.columns.tags):
            raise InputError("--columns: CoNLL files have no names of columns, the first one and the last are read")

    def read(self, entry: str, option: str, split: str) -> list[Tagged]:
        return read_tagged(entry, self.columns, option=option, split=split)

    def embedded(self, requests: Sequence[Request], place: str) -> list[Tagged]:
        return [Tagged(place, request.tokens, request.tags) for request in requests]

    def texts(self, rows: Sequence[Tagged]) -> list[str]:
        return [" ".join(row.tokens) for row in rows]

    def labels(self, rows: Sequence[Tagged], start: BertConfig | None) -> dict[str, Any]:
        return {"id2label": tag_names(rows, start.id2label if start else ())}

    def features(
        self, rows: Sequence[Tagged], tokenizer: BertTokenizer, config: BertConfig, *, training: bool
    ) -> Features:
        return tagged_features(rows, tokenizer, config.id2label, self.settings.max_length)

    def weights(self, batch: Batch) -> Sums:
        return {"loss_per_word": jnp.sum(counted(batch))}

    def sums(self, out: Any, batch: Batch) -> Sums:
        return {"loss_per_word": cross_entropy(out.logits, batch["tags"], counted(batch))[0]}

    def outputs(self, out: Any) -> dict[str, Array]:
        return {"tags": jnp.argmax(out.logits, axis=-1)}

    def answers(
        self, rows: Sequence[Tagged], features: Features, outputs: Sequence[dict[str, np.ndarray]], config: BertConfig
    ) -> list[dict[str, Any]]:
        return [
            {
                "tokens": row.tokens,
                "tags": row.tags,
                "predicted": word_tags(len(row.tokens), firsts, output["tags"], config.id2label),
            }
            for row, firsts, output in zip(rows, features.sources, outputs, strict=True)
        ]

    def scores(self, rows: Sequence[Tagged], answers: Sequence[dict[str, Any]], config: BertConfig) -> dict[str, float]:
        return entity_scores([answer["predicted"] for answer in answers], [row.tags for row in rows])

    def confusion(
        self, rows: Sequence[Tagged], answers: Sequence[dict[str, Any]], config: BertConfig
    ) -> tuple[list[str], np.ndarray] | None:
        kinds = list(dict.fromkeys(["O", *map(kind_of, config.id2label)]))
        predicted = [kind_of(tag) for answer in answers for tag in answer["predicted"]]
        return kinds, confusion_of(predicted, [kind_of(tag) for row in rows for tag in row.tags], kinds)


def entity_scores(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """seqeval's micro scores as an evaluation row."""
    found = metrics.tagging_scores(predicted, expected)
    return {"eval/precision": found.precision, "eval/recall": found.recall, "eval/f1": found.f1}


def tag_names(rows: Sequence[Tagged], start: Sequence[str]) -> tuple[str, ...]:
    """The tag O, then B-X and I-X of each X that occurs, by name.

    In the order of the model that training starts from, if they are its tags. Of an X that has one word only in
    training, longer ones can be tagged too.

    Raises:
        InputError: there is no tag but O.
    """
    kinds = {tag[2:] for row in rows for tag in row.tags if tag != "O"}
    if not kinds:
        raise InputError(f"{rows[0].place}: all tags are O; names are needed, the first word of each tagged B-TYPE")
    found = {"O", *(f"{begins}-{kind}" for kind in kinds for begins in "BI")}
    if set(start) == found:
        return tuple(start)
    return tuple(sorted(found, key=lambda tag: (tag != "O", tag[2:], tag)))


def tagged_features(
    rows: Sequence[Tagged], tokenizer: BertTokenizer, names: Sequence[str], max_length: int
) -> Features:
    """Examples with `tags` [L]: at the first piece of each word its tag's index, elsewhere NO_LABEL."""
    examples, sources, lost = [], [], 0
    for row, encoding in zip(rows, tokenizer.encode_words([row.tokens for row in rows], max_length), strict=True):
        tags = np.full(len(encoding.ids), NO_LABEL, np.int32)
        firsts = first_pieces(encoding.word_ids)
        # Those of words that the model does not read too: they are scored.
        known = [known_label(tag, names, row.place, "the tag") for tag in row.tags]
        tags[list(firsts.values())] = [known[word] for word in firsts]
        examples.append(single_example(encoding) | {"tags": tags})
        sources.append(firsts)
        lost += len(row.tokens) - len(firsts)
    return Features(examples, sources, {"words behind --max-length, or of no character that the model reads": lost})


def first_pieces(word_ids: Sequence[int | None]) -> dict[int, int]:
    """Word -> position of its first piece."""
    firsts: dict[int, int] = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            firsts.setdefault(word, position)
    return firsts


def counted(batch: Batch) -> Array:
    """1 for each position of a tag, [B, L]."""
    return (batch["tags"] != NO_LABEL) * batch["weights"][:, None]


def word_tags(words: int, firsts: Mapping[int, int], tag_ids: np.ndarray, names: Sequence[str]) -> list[str]:
    """The tag of each word; "O" for words that the model did not read."""
    return [names[int(tag_ids[firsts[word]])] if word in firsts else "O" for word in range(words)]


def kind_of(tag: str) -> str:
    """What a tag is of, whether it begins it or goes on."""
    return tag[2:] if tag[:2] in ("B-", "I-") else tag
