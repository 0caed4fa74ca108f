"""The jobs of `python -m bert_jax`: what a line says, what a pipeline makes of it, and how that is written."""

import abc
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp

from bert_jax.pipelines import FillMask, QuestionAnswerer, TextClassifier, TextEmbedder, TokenTagger
from bert_jax.pipelines.runner import Pipeline
from transformer_jax.checks import LARGEST, Range, require, shown
from transformer_jax.lines import Job, Record, columns_line, json_line
from transformer_jax.texts import TextError

Count = Annotated[int, Range(1, LARGEST)]


@dataclasses.dataclass(frozen=True)
class PipelineJob(Job):
    """Answers lines by a pipeline.

    Attributes:
        format: a JSON object a line, or columns
    """

    format: Literal["jsonl", "tsv"] = "jsonl"

    pipeline: ClassVar[type[Pipeline]]

    def load(self) -> Any:
        """The pipeline of the folder."""
        return self.pipeline.from_pretrained(self.folder, jnp.dtype(self.dtype))

    def written(self, record: Record, answer: Record) -> str:
        return json_line(record | answer) if self.format == "jsonl" else columns_line(self.columns(answer))

    @abc.abstractmethod
    def columns(self, answer: Record) -> Iterable[Any]:
        """The columns of an answer."""


@dataclasses.dataclass(frozen=True)
class FillMaskJob(PipelineJob):
    """Fills in each [MASK] of a text a line.

    Attributes:
        top_k: fills of a mask; columns are the text filled in with the likeliest, the next likeliest ...
    """

    top_k: Count = 5

    pipeline: ClassVar[type[Pipeline]] = FillMask

    def answers(self, pipeline: FillMask, records: Sequence[Record]) -> Iterable[Record]:
        for masks, completions in pipeline.fills([record["text"] for record in records], self.top_k, self.batch_size):
            fills = [[{"token": token, "probability": p} for token, p in mask] for mask in masks]
            yield {"masks": fills, "completions": completions}

    def columns(self, answer: Record) -> Iterable[Any]:
        return answer["completions"]


@dataclasses.dataclass(frozen=True)
class EmbedJob(PipelineJob):
    """Gives a vector for each text a line.

    Attributes:
        prompt_name: which of the model's prompts to put in front of each text
    """

    prompt_name: str | None = None

    pipeline: ClassVar[type[Pipeline]] = TextEmbedder

    def answers(self, pipeline: TextEmbedder, records: Sequence[Record]) -> Iterable[Record]:
        vectors = pipeline([record["text"] for record in records], self.batch_size, self.prompt_name)
        return [{"embedding": vector.tolist()} for vector in vectors]

    def columns(self, answer: Record) -> Iterable[Any]:
        return answer["embedding"]


@dataclasses.dataclass(frozen=True)
class ClassifyJob(PipelineJob):
    """Says the labels of a text a line, or of a pair of texts with a tab between them.

    Columns are a label and its probability, the likeliest first; of a regression the number.
    """

    pipeline: ClassVar[type[Pipeline]] = TextClassifier

    def record(self, line: str) -> Record:
        parts = line.split("\t")
        require(len(parts) < 3, f"has {len(parts)} columns: give a text, or two with a tab between them")
        return dict(zip(("text", "pair"), parts, strict=False))

    def answers(self, pipeline: TextClassifier, records: Sequence[Record]) -> Iterable[Record]:
        paired = "pair" in records[0]
        for index, record in enumerate(records):
            if ("pair" in record) is not paired:
                raise TextError("texts", index, f"{'lacks' if paired else 'has'} a second text, unlike those before it")
        pairs = [record["pair"] for record in records] if paired else None
        for found in pipeline([record["text"] for record in records], pairs, self.batch_size):
            if isinstance(found, float):
                yield {"value": found}
            else:
                name = "value" if pipeline.problem_type == "regression" else "probability"
                yield {"labels": [{"label": label, name: value} for label, value in found]}

    def columns(self, answer: Record) -> Iterable[Any]:
        labels = answer.get("labels", ())
        return [answer["value"]] if "value" in answer else [value for label in labels for value in label.values()]


@dataclasses.dataclass(frozen=True)
class TagJob(PipelineJob):
    """Finds the entities of a text a line.

    Columns are label and text of each entity.
    """

    pipeline: ClassVar[type[Pipeline]] = TokenTagger

    def answers(self, pipeline: TokenTagger, records: Sequence[Record]) -> Iterable[Record]:
        for entities in pipeline([record["text"] for record in records], self.batch_size):
            yield {"entities": [entity._asdict() for entity in entities]}

    def columns(self, answer: Record) -> Iterable[Any]:
        return [value for entity in answer["entities"] for value in (entity["label"], entity["text"])]


@dataclasses.dataclass(frozen=True)
class AnswerJob(PipelineJob):
    """Answers questions out of their contexts.

    A line is a question, a tab and its context, or a JSON object with "question" and "context". Columns are the text
    and the score of each answer.

    Attributes:
        top_k: answers to a question
        max_answer_length: tokens of an answer
        max_length: tokens of a window of the context, with the question
        stride: tokens that neighbouring windows share
    """

    top_k: Count = 1
    max_answer_length: Count = 30
    max_length: Count = 384
    stride: Annotated[int, Range(0, LARGEST)] = 128

    pipeline: ClassVar[type[Pipeline]] = QuestionAnswerer

    def load(self) -> QuestionAnswerer:
        return dataclasses.replace(super().load(), max_length=self.max_length, stride=self.stride)

    def record(self, line: str) -> Record:
        if "\t" in line:  # which JSON writes as \t
            parts = line.split("\t")
            require(len(parts) == 2, f"has {len(parts)} columns: give a question, a tab and its context")
            return {"question": parts[0], "context": parts[1]}
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            said = None
        right = isinstance(said, dict) and all(isinstance(said.get(name), str) for name in ("question", "context"))
        wanted = 'a question, a tab and its context, or {"question": ..., "context": ...}'
        require(right, f"must be {wanted}, not {shown(line)}")
        return {"question": _text(said["question"]), "context": _text(said["context"])}

    def answers(self, pipeline: QuestionAnswerer, records: Sequence[Record]) -> Iterable[Record]:
        questions, contexts = ([record[name] for record in records] for name in ("question", "context"))
        for found in pipeline(questions, contexts, self.top_k, self.max_answer_length, self.batch_size):
            yield {"answers": [answer._asdict() for answer in found.best], "null_score": found.null_score}

    def columns(self, answer: Record) -> Iterable[Any]:
        return [value for one in answer["answers"] for value in (one["text"], one["score"])]


JOBS: dict[str, type[Job]] = {
    "fill-mask": FillMaskJob,
    "embed": EmbedJob,
    "classify": ClassifyJob,
    "tag": TagJob,
    "answer": AnswerJob,
}


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half of a surrogate pair, {text[error.start]!r}") from error
    return text
