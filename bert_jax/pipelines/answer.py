"""Answers to questions, out of a text."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
from jax import Array
from tokenizers import Encoding

from bert_jax.checkpoints import PretrainedModel
from bert_jax.heads import BertForQuestionAnswering
from bert_jax.pipelines.runner import BATCH_SIZE, Batch, Pipeline, forward
from bert_jax.spans import Answer, best_spans
from bert_jax.vocabulary import check_texts
from transformer_jax.checks import LARGEST, Range, Size, check_fields, check_value, require
from transformer_jax.texts import TextError


class Answers(NamedTuple):
    """What answers a question.

    Attributes:
        best: different pieces of the context, best first; none if the context is empty.
        null_score: the score of there being no answer: that of [CLS], the least of all windows. A model that was
            trained with questions that have none (SQuAD 2.0) says so where this is above `best[0].score`.
    """

    best: list[Answer]
    null_score: float


@dataclasses.dataclass(frozen=True)
class QuestionAnswerer(Pipeline):
    """Finds the piece of a context that answers a question (Devlin et al. 2019, section 4.2).

    A context of any length is read in windows that overlap.

    Attributes:
        max_length: tokens of a window, the question and three special ones included; at most what the model reads.
        stride: tokens of the context that neighbouring windows share; half of a window's where that is less.

    Raises:
        ValueError: a field is out of range.
    """

    model: BertForQuestionAnswering
    max_length: Size = 384
    stride: Annotated[int, Range(0, LARGEST)] = 128

    model_class: ClassVar[type[PretrainedModel]] = BertForQuestionAnswering

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)

    @property
    def longest(self) -> int:
        """Tokens of a window."""
        return min(self.max_length, super().longest)

    def __call__(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        top_k: int = 1,
        max_answer_length: int = 30,
        batch_size: int = BATCH_SIZE,
    ) -> list[Answers]:
        """The `top_k` best answers to each question in the context at the same place.

        Args:
            max_answer_length: of an answer, in tokens.

        Raises:
            ValueError: no lists of str, of one length, top_k or max_answer_length below 1, or parameters whose answers
                are not finite.
            TextError: a question that leaves no room for its context.
        """
        check_value("top_k", top_k, Annotated[int, Range(1, LARGEST)])
        check_value("max_answer_length", max_answer_length, Annotated[int, Range(1, LARGEST)])
        questions, contexts = check_texts("questions", questions), check_texts("contexts", contexts)
        require(len(questions) > 0, "questions is empty: give at least one question")
        same = len(questions) == len(contexts)
        require(same, f"{len(questions)} questions, but {len(contexts)} contexts")
        windows = [self._windows(index, *pair) for index, pair in enumerate(zip(questions, contexts, strict=True))]
        step = functools.partial(_ends, self.model, self.params)
        found = iter(self.run(step, [window for several in windows for window in several], batch_size))
        answers = []
        for context, several in zip(contexts, windows, strict=True):
            parts = [(window, *next(found)) for window in several]
            answers.append(Answers(*best_spans(context, parts, top_k, max_answer_length)))
        return answers

    def _windows(self, index: int, question: str, context: str) -> list[Encoding]:
        room = self.longest - 1 - len(self.tokenizer.encode([question])[0])
        if room < 1:
            reason = f"has {self.longest - room - 3} tokens, which leaves none of {self.longest} for the context"
            raise TextError("questions", index, reason)
        return self.tokenizer.encode_windows(question, context, self.longest, min(self.stride, room // 2))


@functools.partial(jax.jit, static_argnums=0)
def _ends(model: BertForQuestionAnswering, params: dict[str, Any], batch: Batch) -> tuple[Array, Array]:
    """Logits [B, L] of first and last tokens."""
    out = forward(model, params, batch)
    return out.start_logits, out.end_logits
