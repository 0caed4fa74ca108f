"""What a fine-tuning task is: the columns it reads, its features, its head, its loss, its answers and their scores."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bert_jax import BertConfig, BertTokenizer
from bert_jax.checkpoints import PretrainedModel
from train.data.padded import Example
from train.data.requests import Request
from train.data.tfds import is_tfds, split_of
from train.errors import InputError
from train.state import Batch, Sums
from transformer_jax.checks import listed, shown

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
NO_LABEL = -100  # of tokens that count for no loss


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """Names of the columns that hold what a task reads; by default those that its data sets have."""

    text: str | None = None
    """Text, the first of a pair, or what stands in front of choices."""
    pair: str | None = None
    """The second text."""
    label: str | None = None
    """Class, several classes, score, intent, or number of the right choice."""
    tokens: str | None = None
    """Words of a sentence, a list or separated by blanks."""
    tags: str | None = None
    """Tags of the words, likewise."""
    choices: tuple[str, ...] = ()
    """Columns with one choice each."""


class Settings(NamedTuple):
    """What tasks look at of the job's options."""

    data: tuple[str, ...]
    columns: ColumnsConfig
    problem_type: Literal["single-label", "multi-label", "regression"]
    max_length: int
    stride: int


class Features(NamedTuple):
    """Examples for the model.

    Attributes:
        sources: for each example what its answer is found by, such as an encoding.
        left_out: what the model does not see -> how much of it.
    """

    examples: list[Example]
    sources: list[Any]
    left_out: dict[str, int]


class FinetuneTask(abc.ABC):
    """A task. `train.finetune` asks for everything in the order of the methods below.

    A row is whatever `read` makes of the data; it has a `place`, which begins the message about it.

    Attributes:
        roles: what the task reads of a row -> the column that holds it by default; empty where it may be absent.
        optional: roles that may be absent too, though they have a column by default: `--columns.ROLE ""`.
        head: the model class.
        terms: the sums that make up the loss.
        best: the score that says which checkpoint is the best, and whether the least or the greatest is.
        validation: the splits of TFDS data that are held out.
    """

    roles: ClassVar[Mapping[str, str]] = {}
    optional: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[type[PretrainedModel]]
    terms: ClassVar[tuple[str, ...]] = ("loss_per_row",)
    best: tuple[str, Literal["min", "max"]]
    validation: tuple[str, ...] = ("validation",)

    def __init__(self, settings: Settings) -> None:
        """Raises InputError for columns that this task does not read."""
        self.settings = settings
        self.columns = self._columns(self.roles)

    # --- data ----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def read(self, entry: str, option: str, split: str) -> list[Any]:
        """The rows of one entry of --data or --eval.data. Raises InputError."""

    def splits(self, entry: str) -> tuple[str, ...]:
        """What is read of a held-out entry: of TFDS data all of `validation`, unless it names its split; files once."""
        return self.validation if is_tfds(entry) and not split_of(entry) else self.validation[:1]

    @abc.abstractmethod
    def embedded(self, requests: Sequence[Request], place: str) -> list[Any]:
        """Rows made from embedded requests, which need no file; `place` says where they come from."""

    @abc.abstractmethod
    def texts(self, rows: Sequence[Any]) -> list[str]:
        """All text of rows: what a vocabulary is learned from where there is no --model."""

    def labels(self, rows: Sequence[Any], start: BertConfig | None) -> dict[str, Any]:
        """The fields of a BertConfig that follow from the training rows; the order is that of --model if it fits."""
        return {}

    @abc.abstractmethod
    def features(
        self, rows: Sequence[Any], tokenizer: BertTokenizer, config: BertConfig, *, training: bool
    ) -> Features:
        """Examples for the model. Raises InputError for rows whose labels the model does not have."""

    # --- model ---------------------------------------------------------------------------------------------------

    def inputs(self, rows: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What `init` of the model takes after the key, for so many rows."""
        return (jax.ShapeDtypeStruct((rows, 8), jnp.int32),)

    def apply(self, model: PretrainedModel, params: Any, batch: Batch, **options: Any) -> Any:
        """The model's output for a batch."""
        return model.apply({"params": params}, *(batch[name] for name in INPUTS), **options)

    def weights(self, batch: Batch) -> Sums:
        """The weight of each sum of `sums`."""
        return dict.fromkeys(self.terms, jnp.sum(batch["weights"]))

    @abc.abstractmethod
    def sums(self, out: Any, batch: Batch) -> Sums:
        """Losses as sums over the batch, each to be divided by its weight."""

    @abc.abstractmethod
    def outputs(self, out: Any) -> dict[str, Array]:
        """What answers need of the model's output, with the batch as the leading axis."""

    # --- answers -------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def answers(
        self, rows: Sequence[Any], features: Features, outputs: Sequence[dict[str, np.ndarray]], config: BertConfig
    ) -> list[dict[str, Any]]:
        """A record for each row, as JSON can hold it, from the outputs for each example."""

    @abc.abstractmethod
    def scores(self, rows: Sequence[Any], answers: Sequence[dict[str, Any]], config: BertConfig) -> dict[str, float]:
        """Scores of the answers; names begin with `eval/`."""

    def confusion(
        self, rows: Sequence[Any], answers: Sequence[dict[str, Any]], config: BertConfig
    ) -> tuple[list[str], np.ndarray] | None:
        """Names of classes and how often each (row) was taken for each (column); None where there are no classes."""
        return None

    def files(self, config: BertConfig) -> dict[str, bytes]:
        """Files of the export beside the model's and the tokenizer's."""
        return {}

    # --- columns -------------------------------------------------------------------------------------------------

    def _columns(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Role -> column of what is read: those of the options, and the defaults."""
        columns = dict(defaults)
        for field in dataclasses.fields(ColumnsConfig):
            value = getattr(self.settings.columns, field.name)
            if value is None or value == ():
                continue
            if field.name not in self.roles:
                known = ", ".join(f"--columns.{role}" for role in self.roles) or "no columns"
                raise InputError(f"--columns.{field.name} {shown(value)}: the task reads {known}; leave it out")
            if not value and self.roles[field.name] and field.name not in self.optional:
                raise InputError(f"--columns.{field.name} '': the task needs it; name a column, or leave it out")
            columns[field.name] = value
        return {role: column for role, column in columns.items() if column}


class TaskObjective:
    """The loss of a fine-tuning task."""

    def __init__(self, model: PretrainedModel, task: FinetuneTask) -> None:
        self.model, self.task, self.terms = model, task, task.terms

    def prepare(self, batch: Batch, key: Array) -> tuple[Batch, Sums]:
        tokens = jnp.sum(batch["attention_mask"].astype(jnp.float32))
        return batch, {**self.task.weights(batch), "tokens": tokens}

    def sums(self, params: Any, batch: Batch, dropout_key: Array | None) -> Sums:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return self.task.sums(self.apply(params, batch, deterministic=dropout_key is None, rngs=rngs), batch)

    def apply(self, params: Any, batch: Batch, **options: Any) -> Any:
        return self.task.apply(self.model, params, batch, **options)


def single_example(encoding: Any) -> Example:
    """The arrays of one encoding, not padded."""
    return {
        "input_ids": np.array(encoding.ids, np.int32),
        "token_type_ids": np.array(encoding.type_ids, np.int32),
        "attention_mask": np.ones(len(encoding.ids), np.int32),
    }


def known_label(label: str, names: Sequence[str], place: str, option: str) -> int:
    """The index of a label. Raises InputError where training has none of that name."""
    if label not in names:
        known = listed([*names], 12)
        raise InputError(
            f"{place}: {option} {shown(label)} is none that training has: {known}; train on a row that has it, "
            "or leave this one out"
        )
    return names.index(label)
