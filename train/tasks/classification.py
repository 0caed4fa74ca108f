"""Classes, several classes, or a number for a text or a pair of texts: the nine GLUE tasks and their like."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bert_jax import BertConfig, BertForSequenceClassification, BertTokenizer
from train import metrics
from train.data.glue import GLUE, GlueTask
from train.data.requests import Request
from train.data.tables import Row, label_of, labels_of, number_of, read_table, text_of
from train.data.tfds import split_of
from train.errors import InputError
from train.state import Batch, Sums
from train.tasks.base import Features, FinetuneTask, Settings, known_label, single_example
from transformer_jax import cross_entropy
from transformer_jax.checks import shown


class Labelled(NamedTuple):
    """A text or a pair with its class, its classes, or its number; None where the data does not say."""

    place: str
    text: str
    pair: str | None
    label: str | tuple[str, ...] | float | None


class Classification(FinetuneTask):
    """The output of [CLS] through the pooler and a linear layer (Devlin et al. 2019, figure 4 a and b)."""

    roles: ClassVar[Mapping[str, str]] = {"text": "text", "pair": "", "label": "label"}
    head = BertForSequenceClassification

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.problem_type = settings.problem_type
        self.best = (_BEST[self.problem_type], "max")
        self.names: tuple[str, ...] = ()  # where it is known what the classes are, and of which one F1 is
        names = {entry.removesuffix(f":{split_of(entry)}") for entry in settings.data}
        if len(names) == 1 and (known := _GLUE.get(names.pop())):
            self._follow(known)

    def _follow(self, known: GlueTask) -> None:
        """Takes columns, classes, splits and the score that counts from the table of GLUE."""
        kind: Literal["single-label", "regression"] = "single-label" if known.labels else "regression"
        if self.problem_type not in ("single-label", kind):
            raise InputError(f"--problem-type {self.problem_type}: {known.data} is {kind}; leave it out")
        self.columns = self._columns({"text": known.text, "pair": known.pair, "label": known.label})
        self.problem_type, self.names = kind, known.labels
        self.best, self.validation = (known.metric, "max"), known.validation

    # --- data ----------------------------------------------------------------------------------------------------

    def read(self, entry: str, option: str, split: str) -> list[Labelled]:
        table = read_table(entry, self.columns, option=option, split=split)
        pair = "pair" in self.columns
        return [
            Labelled(row.place, text_of(row, "text"), text_of(row, "pair") if pair else None, self._label(row))
            for row in table
        ]

    def embedded(self, requests: Sequence[Request], place: str) -> list[Labelled]:
        return [Labelled(place, request.text, None, request.intent) for request in requests]

    def texts(self, rows: Sequence[Labelled]) -> list[str]:
        return [text for row in rows for text in (row.text, row.pair) if text is not None]

    def labels(self, rows: Sequence[Labelled], start: BertConfig | None) -> dict[str, Any]:
        for row in rows:
            if row.label is None:
                raise InputError(f"{row.place}: there is no label, which training needs")
        place = rows[0].place
        if self.problem_type == "regression":
            if len({row.label for row in rows}) < 2:
                raise InputError(f"{place}: all numbers are {rows[0].label}; numbers that differ are needed")
            return {"id2label": ("LABEL_0",), "problem_type": "regression"}
        if self.problem_type == "multi-label":
            found = {name for row in rows for name in cast(tuple[str, ...], row.label)}
            if not found:
                raise InputError(f"{place}: no row has a label; one is needed, in some rows")
            return {"id2label": label_names(found, start), "problem_type": "multi_label_classification"}
        names = class_names([cast(str, row.label) for row in rows], start, place, self.names)
        return {"id2label": names, "problem_type": "single_label_classification"}

    def features(
        self, rows: Sequence[Labelled], tokenizer: BertTokenizer, config: BertConfig, *, training: bool
    ) -> Features:
        pairs = None if rows[0].pair is None else [row.pair or "" for row in rows]
        encodings = tokenizer.encode([row.text for row in rows], pairs, self.settings.max_length)
        examples = []
        for row, encoding in zip(rows, encodings, strict=True):
            examples.append(single_example(encoding) | {"labels": self._target(row, config)})
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        return Features(examples, encodings, {"texts cut to --max-length": cut})

    def _label(self, row: Row) -> str | tuple[str, ...] | float | None:
        if self.problem_type == "regression":
            return None if row.fields["label"] is None else number_of(row, "label")
        if self.problem_type == "multi-label":
            return labels_of(row, "label")
        return label_of(row, "label")

    def _target(self, row: Labelled, config: BertConfig) -> np.ndarray:
        names, column = config.id2label, f"the {self.columns.get('label', 'label')}"
        if row.label is None:
            raise InputError(f"{row.place}: there is no label, which scores need")
        if isinstance(row.label, float):
            return np.float32(row.label)  # type: ignore[return-value]
        if isinstance(row.label, tuple):
            hot = np.zeros(len(names), np.float32)
            hot[[known_label(name, names, row.place, column) for name in row.label]] = 1
            return hot
        return np.int32(known_label(row.label, names, row.place, column))  # type: ignore[return-value]

    # --- model ---------------------------------------------------------------------------------------------------

    def sums(self, out: Any, batch: Batch) -> Sums:
        logits, labels, weights = out.logits, batch["labels"], batch["weights"]
        if self.problem_type == "single-label":
            return {"loss_per_row": cross_entropy(logits, labels, weights)[0]}
        if self.problem_type == "regression":
            return {"loss_per_row": jnp.sum(jnp.square(logits[:, 0] - labels) * weights)}
        losses = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)
        return {"loss_per_row": jnp.sum(losses * weights)}

    def outputs(self, out: Any) -> dict[str, Array]:
        if self.problem_type == "single-label":
            return {"scores": jax.nn.softmax(out.logits)}
        return {"scores": out.logits if self.problem_type == "regression" else jax.nn.sigmoid(out.logits)}

    # --- answers -------------------------------------------------------------------------------------------------

    def answers(
        self,
        rows: Sequence[Labelled],
        features: Features,
        outputs: Sequence[dict[str, np.ndarray]],
        config: BertConfig,
    ) -> list[dict[str, Any]]:
        records = []
        for row, output in zip(rows, outputs, strict=True):
            scores = [float(score) for score in output["scores"]]
            pair = {} if row.pair is None else {"pair": row.pair}
            record: dict[str, Any] = {"text": row.text, **pair, "label": row.label}
            if self.problem_type == "regression":
                records.append(record | {"predicted": scores[0]})
                continue
            named = dict(zip(config.id2label, scores, strict=True))
            single = self.problem_type == "single-label"
            best = max(named, key=named.__getitem__) if single else [name for name in named if named[name] > 0.5]
            records.append(record | {"predicted": best, "probabilities": named})
        return records

    def scores(
        self, rows: Sequence[Labelled], answers: Sequence[dict[str, Any]], config: BertConfig
    ) -> dict[str, float]:
        right: list[Any] = [row.label for row in rows]
        found = [answer["predicted"] for answer in answers]
        if self.problem_type == "regression":
            return correlations(found, right)
        if self.problem_type == "multi-label":
            hot = (
                np.array([[name in labels for name in config.id2label] for labels in side]) for side in (found, right)
            )
            several = metrics.multi_label_scores(*hot)
            return {"eval/f1": several.f1, "eval/exact_match": several.exact_match}
        counts = self._counts(rows, answers, config)
        macro = metrics.macro_scores(counts).f1
        f1 = {"eval/f1": macro}
        if len(counts) == 2:  # that of the second class, as GLUE has it; a model may have them the other way round
            positive = config.id2label.index(self.names[1]) if {*self.names} == {*config.id2label} else 1
            f1 = {"eval/f1": metrics.binary_scores(counts, positive).f1, "eval/f1_macro": macro}
        return {"eval/accuracy": metrics.accuracy(found, right), **f1, "eval/matthews": metrics.matthews(counts)}

    def confusion(
        self, rows: Sequence[Labelled], answers: Sequence[dict[str, Any]], config: BertConfig
    ) -> tuple[list[str], np.ndarray] | None:
        if self.problem_type != "single-label":
            return None
        return list(config.id2label), self._counts(rows, answers, config)

    def _counts(self, rows: Sequence[Labelled], answers: Sequence[dict[str, Any]], config: BertConfig) -> np.ndarray:
        return confusion_of([answer["predicted"] for answer in answers], [row.label for row in rows], config.id2label)


_GLUE = {task.data: task for task in GLUE.values()}
_BEST = {"single-label": "eval/accuracy", "multi-label": "eval/f1", "regression": "eval/spearman"}


def confusion_of(predicted: Sequence[Any], expected: Sequence[Any], names: Sequence[str]) -> np.ndarray:
    """`metrics.confusion_matrix` of names."""
    index = {name: number for number, name in enumerate(names)}
    found, right = (np.array([index[name] for name in side]) for side in (predicted, expected))
    return metrics.confusion_matrix(found, right, len(names))


def correlations(found: Sequence[float], right: Sequence[float]) -> dict[str, float]:
    """Both correlations as an evaluation row; answers that are all alike correlate with nothing, 0."""
    return {
        f"eval/{name}": float(np.nan_to_num(metric(found, right)))
        for name, metric in (("pearson", metrics.pearson), ("spearman", metrics.spearman))
    }


def class_names(
    labels: Sequence[str], start: BertConfig | None, place: str, known: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """As `label_names`, of rows with one label each; `known` are all that there can be, in the order without a model.

    Raises:
        InputError: there is one class only; `place` begins the message.
    """
    found = set(labels)
    if len(found) < 2:
        raise InputError(f"{place}: all labels are {shown(labels[0])}; two classes are needed")
    known = known if found <= {*known} else ()
    return label_names({*known} or found, start, known)


def label_names(found: set[str], start: BertConfig | None, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Labels in the order of the model that training starts from, if they are its labels; else by number or name."""
    if start is not None and set(start.id2label) == found:
        return start.id2label
    return known or tuple(sorted(found, key=_number_first))


def _number_first(name: str) -> tuple[int, int, str]:
    short = name.isdecimal() and len(name) < 10  # Python makes no number of thousands of digits
    return (0, int(name), name) if short else (1, 0, name)
