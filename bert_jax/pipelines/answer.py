"""Answers to questions, out of a text."""

import dataclasses
import functools
import heapq
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax import Array
from tokenizers import Encoding

from bert_jax.checkpoints import PretrainedModel
from bert_jax.heads import BertForQuestionAnswering
from bert_jax.pipelines.runner import BATCH_SIZE, Batch, Pipeline, TextError
from bert_jax.vocabulary import check_texts
from transformer_jax.checks import LARGEST, Range, Size, check_fields, check_value, require


class Answer(NamedTuple):
    """A piece of a context.

    Attributes:
        text: `context[start:end]`.
        score: the logit of its first token being the first, plus that of its last being the last.
    """

    text: str
    start: int
    end: int
    score: float


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
            scores: dict[tuple[int, int], float] = {}
            null = np.inf
            for window in several:
                start_L, end_L = next(found)
                null = min(null, float(start_L[0] + end_L[0]))
                for place, score in _spans(window, start_L, end_L, top_k, max_answer_length).items():
                    scores[place] = max(score, scores.get(place, score))
            best = heapq.nsmallest(top_k, scores.items(), key=lambda item: (-item[1], item[0]))
            answers.append(Answers([Answer(context[a:b], a, b, score) for (a, b), score in best], null))
        return answers

    def _windows(self, index: int, question: str, context: str) -> list[Encoding]:
        room = self.longest - 1 - len(self.tokenizer.encode([question])[0])
        if room < 1:
            reason = f"has {self.longest - room - 3} tokens, which leaves none of {self.longest} for the context"
            raise TextError("questions", index, reason)
        return self.tokenizer.encode_windows(question, context, self.longest, min(self.stride, room // 2))


def _spans(
    window: Encoding, start_L: np.ndarray, end_L: np.ndarray, top_k: int, longest: int
) -> dict[tuple[int, int], float]:
    """The best pieces of a window: places in the context and scores, among them the `top_k` best."""
    inside = [at for at, sequence in enumerate(window.sequence_ids) if sequence == 1]
    length, first = len(inside), inside[0] if inside else 0
    places = window.offsets[first : first + length]
    scores_LL = start_L[first : first + length, None] + end_L[None, first : first + length]
    size_LL = np.arange(length)[None, :] - np.arange(length)[:, None]
    allowed = np.flatnonzero((size_LL >= 0) & (size_LL < longest))
    order = allowed[np.argsort(-scores_LL.ravel()[allowed], kind="stable")]
    found: dict[tuple[int, int], float] = {}
    for at in order.tolist():
        if len(found) == top_k:
            break
        begin, end = divmod(at, length)
        found.setdefault((places[begin][0], places[end][1]), float(scores_LL[begin, end]))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _ends(model: BertForQuestionAnswering, params: dict[str, Any], batch: Batch) -> tuple[Array, Array]:
    """Logits [B, L] of first and last tokens."""
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    out: Any = model.apply({"params": params}, *inputs)
    return out.start_logits, out.end_logits
