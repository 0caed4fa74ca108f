"""Scores of predictions and of generated text. None warns; each says what it gives where it is not defined.

Those of classes, numbers and tags are float64 from 0 to 1 or from -1 to 1, and the order of arguments is always
(predicted, expected). What is scored on questions is in `train.answer_scores`.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics import BLEU, CHRF, TER

TEXT_METRICS: dict[str, Callable[[], Any]] = {
    "bleu": BLEU,
    "chrf": CHRF,
    "chrf++": functools.partial(CHRF, word_order=2),
    "ter": TER,
}
# TER looks for words that moved: its time grows with the square of a sentence's length and more. These many products of
# words are some seconds of good translations, and some minutes of bad ones.
TER_PRODUCTS = 2_000_000


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], names: Iterable[str] = tuple(TEXT_METRICS)
) -> dict[str, float | str]:
    """Scores of translations against one reference each, as sacreBLEU computes them (Post 2018).

    They are BLEU, chrF (Popović 2015), chrF++ (Popović 2017), from 0 to 100 and the greater the better; and TER (Snover
    et al. 2006), edits in a hundred words, the less the better. TER is not there where texts are so long that it would
    take hours (`TER_PRODUCTS`).

    Returns:
        For each name the score, and under `{name}_signature` how it was computed, which belongs beside every
        published score.

    Raises:
        ValueError: there are no translations, or not as many as references.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} translations for {len(references)} references; both must be equally many")
    scores: dict[str, float | str] = {}
    pairs = zip(hypotheses, references, strict=True)
    too_long = sum(len(one.split()) * len(other.split()) for one, other in pairs) > TER_PRODUCTS
    for name in names:
        if name == "ter" and too_long:
            continue
        metric = TEXT_METRICS[name]()
        scores[name] = float(metric.corpus_score(list(hypotheses), [list(references)]).score)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def bleu_by_kind(hypotheses: Sequence[str], references: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """BLEU of all translations under "", and where they are of several kinds that of each.

    Raises:
        ValueError: as `corpus_scores`.
    """
    rows = list(zip(hypotheses, references, kinds, strict=True))
    found = {"": rows}
    if len(set(kinds)) > 1:
        found |= {kind: [row for row in rows if row[2] == kind] for kind in dict.fromkeys(kinds)}
    return {
        kind: float(corpus_scores([row[0] for row in of], [row[1] for row in of], ["bleu"])["bleu"])
        for kind, of in found.items()
    }


# --- classes -----------------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """Precision, recall and their harmonic mean; each is 0 where nothing was predicted or expected (0 / 0)."""

    precision: float
    recall: float
    f1: float


def confusion_matrix(predicted: ArrayLike, expected: ArrayLike, num_labels: int) -> NDArray[np.int64]:
    """Counts [num_labels, num_labels] of class ids [n]: row, what was expected; column, what was predicted.

    Raises:
        ValueError: there are none, not equally many, or ids that are no integers from 0 to num_labels - 1.
    """
    predicted, expected = _equally_many(predicted, expected)
    for ids in (predicted, expected):
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= num_labels:
            raise ValueError(f"class ids must be integers from 0 to {num_labels - 1}")
    flat = np.bincount(expected.astype(np.int64) * num_labels + predicted.astype(np.int64), minlength=num_labels**2)
    return flat.reshape(num_labels, num_labels).astype(np.int64)


def accuracy(predicted: ArrayLike, expected: ArrayLike) -> float:
    """The share of equal class ids [n].

    Raises:
        ValueError: there are none, or not equally many.
    """
    predicted, expected = _equally_many(predicted, expected)
    return float(np.mean(predicted == expected))


def binary_scores(confusion: ArrayLike, positive: int = 1) -> Scores:
    """Precision, recall and F1 of one class (van Rijsbergen 1979), from a `confusion_matrix`."""
    confusion = np.asarray(confusion)
    right = confusion[positive, positive]
    return _scores(right, confusion[:, positive].sum(), confusion[positive].sum())


def macro_scores(confusion: ArrayLike) -> Scores:
    """The means of the classes' precision, recall and F1, from a `confusion_matrix`.

    As in scikit-learn, a class counts if it was predicted or expected at least once, and F1 is the mean of the classes'
    F1 (not that of the means).
    """
    confusion = np.asarray(confusion)
    there = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    if not there.size:
        return Scores(0.0, 0.0, 0.0)
    return Scores(*(float(mean) for mean in np.mean([binary_scores(confusion, int(label)) for label in there], axis=0)))


def matthews(confusion: ArrayLike) -> float:
    """The correlation of Matthews (1975), for more classes R_K of Gorodkin (2004), from a `confusion_matrix`.

    It is 0 where all predictions, or all expected classes, are the same.
    """
    confusion = np.asarray(confusion, np.float64)
    predicted, expected, total = confusion.sum(0), confusion.sum(1), confusion.sum()
    covariance = np.trace(confusion) * total - predicted @ expected
    spread = np.sqrt(total**2 - predicted @ predicted) * np.sqrt(total**2 - expected @ expected)
    return float(np.clip(covariance / spread, -1, 1)) if spread else 0.0


class MultiLabelScores(NamedTuple):
    """Micro-averaged precision, recall and F1, and the share of examples of which every label is right."""

    precision: float
    recall: float
    f1: float
    exact_match: float


def multi_label_scores(predicted: ArrayLike, expected: ArrayLike) -> MultiLabelScores:
    """Scores of booleans [n, labels]: whether an example has a label. Micro-averages count all labels as one class.

    Raises:
        ValueError: there are none, or of different shapes.
    """
    predicted, expected = _equally_many(predicted, expected, rank=2)
    predicted, expected = predicted.astype(bool), expected.astype(bool)
    scores = _scores((predicted & expected).sum(), predicted.sum(), expected.sum())
    return MultiLabelScores(*scores, float(np.mean((predicted == expected).all(1))))


def _scores(right: int, predicted: int, expected: int) -> Scores:
    return Scores(
        float(right / predicted) if predicted else 0.0,
        float(right / expected) if expected else 0.0,
        float(2 * right / (predicted + expected)) if predicted + expected else 0.0,
    )


# --- numbers -----------------------------------------------------------------------------------------------------


def pearson(predicted: ArrayLike, expected: ArrayLike) -> float:
    """The product-moment correlation of Pearson (1895) of numbers [n].

    It is nan where either side is constant (so also of one pair) or not finite: there is no correlation to speak of.

    Raises:
        ValueError: there are none, or not equally many.
    """
    x, y = (side.astype(np.float64) for side in _equally_many(predicted, expected))
    if any(not np.isfinite(side).all() or (side == side[0]).all() for side in (x, y)):
        return float("nan")
    x, y = (side / np.abs(side).max() for side in (x, y))  # squares neither overflow nor vanish
    x, y = (centred / np.abs(centred).max() for centred in (x - x.mean(), y - y.mean()))
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def spearman(predicted: ArrayLike, expected: ArrayLike) -> float:
    """The rank correlation of Spearman (1904) of numbers [n]: Pearson's of the ranks, where ties share their mean rank.

    It is nan where either side is constant (so also of one pair) or not finite.

    Raises:
        ValueError: there are none, or not equally many.
    """
    x, y = _equally_many(predicted, expected)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: NDArray) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _equally_many(predicted: ArrayLike, expected: ArrayLike, rank: int = 1) -> tuple[NDArray, NDArray]:
    one, other = np.asarray(predicted), np.asarray(expected)
    if one.shape != other.shape or one.ndim != rank or 0 in one.shape:
        raise ValueError(
            f"predictions {one.shape} and what is expected {other.shape} must have the same shape, of rank {rank}, "
            "and not be empty"
        )
    return one, other


# --- tags --------------------------------------------------------------------------------------------------------


class TaggingScores(NamedTuple):
    """Micro-averaged precision, recall and F1 of named spans, and those of each type."""

    precision: float
    recall: float
    f1: float
    types: dict[str, Scores]


def tagging_scores(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> TaggingScores:
    """seqeval's scores (Nakayama 2018; as conlleval of CoNLL-2000) of tags of sentences.

    A span is right if its first token, its last and its type are. Predictions may be no good BIO: an I-X that goes on
    with nothing begins a span. Everything is 0 where there are no spans.

    Raises:
        ValueError: there are no sentences, not equally many, or not as many tags in both of two sentences.
    """
    from seqeval.metrics import sequence_labeling

    _check_tags(predicted, expected)
    sides = [[list(tags) for tags in expected], [list(tags) for tags in predicted]]
    score = sequence_labeling.precision_recall_fscore_support
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that are no BIO tags, and of what is not defined
        names = sorted({span[0] for side in sides for span in sequence_labeling.get_entities(side)})
        if not names:
            return TaggingScores(0.0, 0.0, 0.0, {})
        micro = score(*sides, average="micro", zero_division=0)
        by_type = score(*sides, average=None, zero_division=0)
    types = {name: Scores(*map(float, each)) for name, *each in zip(names, *by_type[:3], strict=True)}
    return TaggingScores(float(micro[0]), float(micro[1]), float(micro[2]), types)


class JointScores(NamedTuple):
    """Of sentences with an intent and slots: see `joint_scores`."""

    intent_accuracy: float
    slot_f1: float
    sentence_accuracy: float


def joint_scores(
    predicted_intents: Sequence[str],
    intents: Sequence[str],
    predicted_tags: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
) -> JointScores:
    """Accuracy of intents, micro F1 of slots, and the share of sentences of which the intent and every tag are right.

    These are the three figures of Goo et al. (2018) and Chen et al. (2019).

    Raises:
        ValueError: as `accuracy` and `tagging_scores`, or there are not as many intents as sentences.
    """
    _check_tags(predicted_tags, tags)
    right = np.array([list(one) == list(other) for one, other in zip(predicted_tags, tags, strict=True)])
    _equally_many(intents, right)
    return JointScores(
        accuracy(predicted_intents, intents),
        tagging_scores(predicted_tags, tags).f1,
        float(np.mean(right & (np.asarray(predicted_intents) == np.asarray(intents)))),
    )


def _check_tags(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> None:
    lengths = [[len(tags) for tags in side] for side in (predicted, expected)]
    if lengths[0] != lengths[1] or not lengths[0]:
        raise ValueError("predicted and expected tags must be of the same sentences, at least one, with a tag a token")
