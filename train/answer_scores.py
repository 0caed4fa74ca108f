"""Scores of answers to questions, as the official scripts of SQuAD 1.1 and 2.0 compute them; from 0 to 1."""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from train.data.squad import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerScores(NamedTuple):
    """Exact match and F1: means of all questions, and of those that have an answer or none (nan without such)."""

    exact_match: float
    f1: float
    answerable_exact_match: float
    answerable_f1: float
    unanswerable: float


class BestThreshold(NamedTuple):
    """The best exact match and F1 that refusing to answer can give, each with its threshold."""

    best_exact: float
    best_exact_threshold: float
    best_f1: float
    best_f1_threshold: float


def normalized_answer(text: str) -> str:
    """Small letters without ASCII punctuation, the articles a, an, the, and more than single blanks, in this order."""
    words = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", words).split())


def exact_match(predicted: str, expected: str) -> float:
    """1 if the normalized answers are equal, else 0."""
    return float(normalized_answer(predicted) == normalized_answer(expected))


def token_f1(predicted: str, expected: str) -> float:
    """F1 of the words that the normalized answers share, counted as often as they occur in both.

    Where either has no words it is 1 if both have none, else 0 (as in SQuAD 2.0; SQuAD 1.1's script gives 0).
    """
    words, others = normalized_answer(predicted).split(), normalized_answer(expected).split()
    if not words or not others:
        return float(words == others)
    common = sum((Counter(words) & Counter(others)).values())
    return 2 * common / (len(words) + len(others))


def answer_scores(predicted: Mapping[str, str], questions: Sequence[Question]) -> AnswerScores:
    """Scores answers by the ids of their questions; "" is no answer.

    Of several right answers that one counts which gives most. What has none, the impossible, expects "".

    Raises:
        ValueError: there are no questions, or one has no answer predicted.
    """
    exact, f1 = _by_question(predicted, questions)
    answerable = [bool(_right_answers(question)) for question in questions]
    return AnswerScores(
        _mean(exact),
        _mean(f1),
        _mean([score for score, has in zip(exact, answerable, strict=True) if has]),
        _mean([score for score, has in zip(f1, answerable, strict=True) if has]),
        _mean([score for score, has in zip(f1, answerable, strict=True) if not has]),
    )


def best_threshold(
    predicted: Mapping[str, str], no_answer: Mapping[str, float], questions: Sequence[Question]
) -> BestThreshold:
    """SQuAD 2.0's search: answers whose `no_answer` score is above the threshold become "".

    Thresholds are the scores themselves, and one below them all, with which nothing is answered. Questions of equal
    score are answered together or not at all. Of equally good thresholds the lowest is given.

    Args:
        predicted: id -> the best answer that is a span, never "" for no answer.
        no_answer: id -> how much speaks for no answer, such as its score less that of the span; finite.

    Raises:
        ValueError: there are no questions, or one has no answer or score.
    """
    exact, f1 = _by_question(predicted, questions)
    if missing := [question.id for question in questions if question.id not in no_answer]:
        raise ValueError(f"{len(missing)} questions have no score for no answer, such as {missing[0]!r}")
    scores = [no_answer[question.id] for question in questions]
    refused = [float(not _right_answers(question)) for question in questions]
    return BestThreshold(*_best(exact, refused, scores), *_best(f1, refused, scores))


def _best(answered: Sequence[float], refused: Sequence[float], scores: Sequence[float]) -> tuple[float, float]:
    """(Best mean, its threshold), where a question gives `answered` if its score is not above it, else `refused`."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    total = sum(refused)
    best, threshold = total, math.nextafter(scores[order[0]], -math.inf)
    for index, following in zip(order, [*order[1:], None], strict=True):
        total += answered[index] - refused[index]
        last = following is None or scores[following] > scores[index]
        if last and total > best:
            best, threshold = total, scores[index]
    return best / len(scores), float(threshold)


def _by_question(predicted: Mapping[str, str], questions: Sequence[Question]) -> tuple[list[float], list[float]]:
    """Exact match and F1 of each question."""
    if missing := [question.id for question in questions if question.id not in predicted]:
        raise ValueError(f"{len(missing)} questions have no predicted answer, such as {missing[0]!r}")
    if not questions:
        raise ValueError("there are no questions to score")
    right = [_right_answers(question) or [""] for question in questions]
    given = [predicted[question.id] for question in questions]
    exact = [max(exact_match(answer, each) for each in texts) for answer, texts in zip(given, right, strict=True)]
    f1 = [max(token_f1(answer, each) for each in texts) for answer, texts in zip(given, right, strict=True)]
    return exact, f1


def _right_answers(question: Question) -> list[str]:
    """The texts that are something once they are normalized."""
    return [answer.text for answer in question.answers if normalized_answer(answer.text)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
