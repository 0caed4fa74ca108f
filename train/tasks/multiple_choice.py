"""The right one of several endings (Devlin et al. 2019, section 4.4; the form of SWAG)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bert_jax import BertConfig, BertForMultipleChoice, BertTokenizer
from train import metrics
from train.data.request_tasks import request_choices
from train.data.requests import Request
from train.data.tables import Row, number_of, read_table, text_of
from train.errors import InputError
from train.state import Batch, Sums
from train.tasks.base import Features, FinetuneTask
from transformer_jax import cross_entropy
from transformer_jax.checks import shown


class Choice(NamedTuple):
    """What stands in front, the beginning of the endings, the endings, and which one is right."""

    place: str
    text: str
    beginning: str
    choices: tuple[str, ...]
    label: int


class MultipleChoice(FinetuneTask):
    """Each choice is a row for the encoder; their scores meet in one softmax."""

    roles: ClassVar[Mapping[str, Any]] = {
        "text": "sent1",
        "pair": "sent2",
        "choices": ("ending0", "ending1", "ending2", "ending3"),
        "label": "label",
    }
    optional = ("pair",)
    head = BertForMultipleChoice
    best = ("eval/accuracy", "max")

    def read(self, entry: str, option: str, split: str) -> list[Choice]:
        columns = {role: column for role, column in self.columns.items() if role != "choices"}
        numbered = {f"choices.{i}": column for i, column in enumerate(self.columns["choices"])}
        if len(numbered) < 2:
            given = shown([*numbered.values()])
            raise InputError(f"--columns.choices {given}: name the columns of two choices or more")
        return [
            self._choice(row, len(numbered))
            for row in read_table(entry, {**columns, **numbered}, option=option, split=split)
        ]

    def _choice(self, row: Row, count: int) -> Choice:
        endings = tuple(text_of(row, f"choices.{i}") for i in range(count))
        label = number_of(row, "label") if row.fields["label"] is not None else -1
        if label not in range(count):
            given = shown(row.fields["label"])
            raise InputError(f"{row.place}: the label {given} must be a number from 0 to {count - 1}")
        second = row.fields.get("pair")  # blank is meant: not every ending has a beginning of its own
        beginning = "" if second is None or (isinstance(second, str) and not second.strip()) else text_of(row, "pair")
        return Choice(row.place, text_of(row, "text"), beginning, endings, int(label))

    def embedded(self, requests: Sequence[Request], place: str) -> list[Choice]:
        return [Choice(place, c.prompt, "", tuple(c.endings), c.label) for c in request_choices(requests)]

    def texts(self, rows: Sequence[Choice]) -> list[str]:
        return [text for row in rows for text in (row.text, row.beginning, *row.choices)]

    def features(
        self, rows: Sequence[Choice], tokenizer: BertTokenizer, config: BertConfig, *, training: bool
    ) -> Features:
        first = [row.text for row in rows for _ in row.choices]
        second = [f"{row.beginning} {ending}".strip() for row in rows for ending in row.choices]
        encodings = tokenizer.encode(first, second, self.settings.max_length)
        count, examples = len(rows[0].choices), []
        for index, row in enumerate(rows):
            batch = tokenizer.pad(encodings[index * count : (index + 1) * count])
            examples.append(batch | {"labels": np.int32(row.label)})
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        return Features(examples, [None] * len(rows), {"choices cut to --max-length": cut})  # type: ignore[arg-type]

    def inputs(self, rows: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (jax.ShapeDtypeStruct((rows, 2, 8), jnp.int32),)

    def sums(self, out: Any, batch: Batch) -> Sums:
        return {"loss_per_row": cross_entropy(out.logits, batch["labels"], batch["weights"])[0]}

    def outputs(self, out: Any) -> dict[str, Array]:
        return {"scores": jax.nn.softmax(out.logits)}

    def answers(
        self, rows: Sequence[Choice], features: Features, outputs: Sequence[dict[str, np.ndarray]], config: BertConfig
    ) -> list[dict[str, Any]]:
        return [
            {
                "text": row.text,
                "beginning": row.beginning,
                "choices": list(row.choices),
                "label": row.label,
                "predicted": int(np.argmax(output["scores"])),
                "probabilities": output["scores"].tolist(),
            }
            for row, output in zip(rows, outputs, strict=True)
        ]

    def scores(self, rows: Sequence[Choice], answers: Sequence[dict[str, Any]], config: BertConfig) -> dict[str, float]:
        return {"eval/accuracy": metrics.accuracy([a["predicted"] for a in answers], [row.label for row in rows])}
