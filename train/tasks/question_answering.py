"""Answers as spans of a paragraph, or none: SQuAD 1.1 and 2.0 (Devlin et al. 2019, sections 4.2 and 4.3)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Encoding

from bert_jax import BertConfig, BertForQuestionAnswering, BertTokenizer
from bert_jax.spans import Answer, best_spans
from train.answer_scores import answer_scores, best_threshold
from train.data.padded import Example
from train.data.request_tasks import request_questions
from train.data.requests import Request
from train.data.squad import Question, read_questions
from train.errors import InputError, blaming
from train.state import Batch, Sums
from train.tasks.base import Features, FinetuneTask, single_example
from transformer_jax import cross_entropy

N_BEST = 5
FAR = 1e6  # where there is no span at all


class Window(NamedTuple):
    """A part of a question's context: the index of the question, and the encoding of both."""

    question: int
    encoding: Encoding


class QuestionAnswering(FinetuneTask):
    """The first and the last token of the answer, each by a softmax over the tokens; [CLS] where there is none.

    A context that does not fit is read in windows; one that does not hold the whole answer has none.
    """

    head = BertForQuestionAnswering
    best = ("eval/f1", "max")

    def read(self, entry: str, option: str, split: str) -> list[Question]:
        return read_questions(entry, option=option)

    def embedded(self, requests: Sequence[Request], place: str) -> list[Question]:
        return request_questions(requests)

    def texts(self, rows: Sequence[Question]) -> list[str]:
        return [text for row in rows for text in (row.question, row.context)]

    def features(
        self, rows: Sequence[Question], tokenizer: BertTokenizer, config: BertConfig, *, training: bool
    ) -> Features:
        examples, sources, without = [], [], 0
        for index, row in enumerate(rows):
            if not row.answers and not row.impossible:
                raise InputError(f"{row.place}: there is no answer, and the question is not marked as impossible")
            with blaming(f"{row.place} (--max-length, --stride)"):
                windows = tokenizer.encode_windows(
                    row.question, row.context, self.settings.max_length, self.settings.stride
                )
            for encoding in windows:
                examples.append(single_example(encoding) | span_of(row, encoding))
                sources.append(Window(index, encoding))
                without += bool(row.answers) and not examples[-1]["end"]
        return Features(examples, sources, {"windows that do not hold their answer whole": without if training else 0})

    def sums(self, out: Any, batch: Batch) -> Sums:
        losses = [
            cross_entropy(_of_tokens(logits_BL, batch), batch[name], batch["weights"])[0]
            for logits_BL, name in ((out.start_logits, "start"), (out.end_logits, "end"))
        ]
        return {"loss_per_row": sum(losses, jnp.zeros(())) / 2}

    def outputs(self, out: Any) -> dict[str, Array]:
        return {"start": out.start_logits, "end": out.end_logits}

    def answers(
        self, rows: Sequence[Question], features: Features, outputs: Sequence[dict[str, np.ndarray]], config: BertConfig
    ) -> list[dict[str, Any]]:
        windows: list[list[Any]] = [[] for _ in rows]
        for source, output in zip(features.sources, outputs, strict=True):
            windows[source.question].append((source.encoding, output["start"], output["end"]))
        may_refuse = any(row.impossible for row in rows)
        records = []
        for row, parts in zip(rows, windows, strict=True):
            spans, nothing = best_spans(row.context, parts)
            best = spans[0] if spans else Answer("", 0, 0, -np.inf)
            refused = may_refuse and nothing > best.score
            records.append(
                {
                    "id": row.id,
                    "question": row.question,
                    "answers": [answer.text for answer in row.answers],
                    "predicted": "" if refused else best.text,
                    "best_span": best.text,
                    "no_answer_score": max(-FAR, min(FAR, nothing - best.score)),
                    "n_best": [span._asdict() for span in spans[:N_BEST]],
                }
            )
        return records

    def scores(
        self, rows: Sequence[Question], answers: Sequence[dict[str, Any]], config: BertConfig
    ) -> dict[str, float]:
        rows = [row._replace(id=str(index)) for index, row in enumerate(rows)]  # two files may have the same ids
        given, spans, nothing = (
            {str(index): answer[name] for index, answer in enumerate(answers)}
            for name in ("predicted", "best_span", "no_answer_score")
        )
        found = answer_scores(given, rows)
        scores = {"eval/exact_match": found.exact_match, "eval/f1": found.f1}
        if not any(row.impossible for row in rows):
            return scores
        each = {"eval/f1_answerable": found.answerable_f1, "eval/f1_unanswerable": found.unanswerable}
        best = best_threshold(spans, nothing, rows)._asdict()
        return {
            **scores,
            **{name: value for name, value in each.items() if not np.isnan(value)},  # there may be none of a kind
            **{f"eval/{name}": value for name, value in best.items()},
        }


def _of_tokens(logits_BL: Array, batch: Batch) -> Array:
    """Logits with padding ruled out, so that a loss does not depend on the length that a batch is padded to."""
    return jnp.where(batch["attention_mask"] > 0, logits_BL, jnp.finfo(jnp.float32).min)


def span_of(row: Question, encoding: Encoding) -> Example:
    """The positions of the first and last token of the (first) answer; 0, that of [CLS], where it is not all there."""
    start = end = 0
    if row.answers:
        text, at = row.answers[0]
        first = at + len(text) - len(text.lstrip())  # blanks around it are in no token
        last = first + len(text.strip())
        inside = [
            position
            for position, (sequence, (begin, stop)) in enumerate(
                zip(encoding.sequence_ids, encoding.offsets, strict=True)
            )
            if sequence == 1 and begin < last and stop > first
        ]
        whole = inside and encoding.offsets[inside[0]][0] <= first and encoding.offsets[inside[-1]][1] >= last
        start, end = (inside[0], inside[-1]) if whole else (0, 0)
    return {"start": np.int32(start), "end": np.int32(end)}  # type: ignore[dict-item]
