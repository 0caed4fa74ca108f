"""The intent of a request and its slots together (Chen et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bert_jax import BertConfig, BertForJointIntentAndSlots, BertTokenizer
from train import metrics
from train.data.conll import Tagged, tagged_of
from train.data.requests import Request
from train.data.tables import Row, label_of, read_table
from train.errors import InputError
from train.state import Batch, Sums
from train.tasks.base import Features, FinetuneTask, known_label
from train.tasks.classification import class_names, confusion_of
from train.tasks.tagging import counted, tag_names, tagged_features, word_tags
from transformer_jax import cross_entropy


class Joined(NamedTuple):
    """A sentence of words with tags, and its intent."""

    place: str
    tokens: list[str]
    tags: list[str]
    intent: str


class Joint(FinetuneTask):
    """The sum of a loss for the intent and one for the slots (equation 2 of the paper, with means in place of sums)."""

    roles: ClassVar[Mapping[str, str]] = {"tokens": "tokens", "tags": "tags", "label": "intent"}
    head = BertForJointIntentAndSlots
    terms = ("intent_loss", "slot_loss")
    best = ("eval/sentence_accuracy", "max")

    def read(self, entry: str, option: str, split: str) -> list[Joined]:
        rows = read_table(entry, self.columns, option=option, split=split)
        return [Joined(*tagged_of(row), self._intent(row)) for row in rows]

    def _intent(self, row: Row) -> str:
        intent = label_of(row, "label")
        if intent is None:
            raise InputError(f"{row.place}: there is no intent in the column {self.columns['label']!r}")
        return intent

    def embedded(self, requests: Sequence[Request], place: str) -> list[Joined]:
        return [Joined(place, request.tokens, request.tags, request.intent) for request in requests]

    def texts(self, rows: Sequence[Joined]) -> list[str]:
        return [" ".join(row.tokens) for row in rows]

    def labels(self, rows: Sequence[Joined], start: BertConfig | None) -> dict[str, Any]:
        tags = tag_names([_tagged(row) for row in rows], start.slot_labels if start else ())
        return {
            "id2label": class_names([row.intent for row in rows], start, rows[0].place),
            "slot_labels": tags,
        }

    def features(
        self, rows: Sequence[Joined], tokenizer: BertTokenizer, config: BertConfig, *, training: bool
    ) -> Features:
        tagged = [_tagged(row) for row in rows]
        found = tagged_features(tagged, tokenizer, config.slot_labels, self.settings.max_length)
        for row, example in zip(rows, found.examples, strict=True):
            example["intent"] = np.int32(known_label(row.intent, config.id2label, row.place, "the intent"))  # type: ignore[assignment]
        return found

    def weights(self, batch: Batch) -> Sums:
        return {"intent_loss": jnp.sum(batch["weights"]), "slot_loss": jnp.sum(counted(batch))}

    def sums(self, out: Any, batch: Batch) -> Sums:
        return {
            "intent_loss": cross_entropy(out.intent_logits, batch["intent"], batch["weights"])[0],
            "slot_loss": cross_entropy(out.slot_logits, batch["tags"], counted(batch))[0],
        }

    def outputs(self, out: Any) -> dict[str, Array]:
        return {"intent": jax.nn.softmax(out.intent_logits), "tags": jnp.argmax(out.slot_logits, axis=-1)}

    def answers(
        self, rows: Sequence[Joined], features: Features, outputs: Sequence[dict[str, np.ndarray]], config: BertConfig
    ) -> list[dict[str, Any]]:
        return [
            {
                "tokens": row.tokens,
                "intent": row.intent,
                "tags": row.tags,
                "predicted_intent": config.id2label[int(np.argmax(output["intent"]))],
                "predicted_tags": word_tags(len(row.tokens), firsts, output["tags"], config.slot_labels),
            }
            for row, firsts, output in zip(rows, features.sources, outputs, strict=True)
        ]

    def scores(self, rows: Sequence[Joined], answers: Sequence[dict[str, Any]], config: BertConfig) -> dict[str, float]:
        intents, tags = ([answer[name] for answer in answers] for name in ("predicted_intent", "predicted_tags"))
        found = metrics.joint_scores(intents, [row.intent for row in rows], tags, [row.tags for row in rows])
        return {f"eval/{name}": value for name, value in found._asdict().items()}

    def confusion(
        self, rows: Sequence[Joined], answers: Sequence[dict[str, Any]], config: BertConfig
    ) -> tuple[list[str], np.ndarray] | None:
        found = [answer["predicted_intent"] for answer in answers]
        return list(config.id2label), confusion_of(found, [row.intent for row in rows], config.id2label)


def _tagged(row: Joined) -> Tagged:
    return Tagged(row.place, row.tokens, row.tags)
