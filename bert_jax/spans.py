"""Answers as spans of a context, from the logits of its windows (Devlin et al. 2019, section 4.2)."""

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding


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


def best_spans(
    context: str, windows: Iterable[tuple[Encoding, np.ndarray, np.ndarray]], top_k: int = 20, max_tokens: int = 30
) -> tuple[list[Answer], float]:
    """(the `top_k` best different pieces of the context, best first; the score of there being no answer).

    A piece lies in one window and has at most `max_tokens` tokens. No answer scores the sum of the logits of [CLS], the
    least of all windows (section 4.3); infinity without a window.

    Args:
        windows: of each its encoding (see `BertTokenizer.encode_windows`) and start and end logits, [L] or longer.
    """
    scores: dict[tuple[int, int], float] = {}
    nothing = np.inf
    for encoding, start_L, end_L in windows:
        nothing = min(nothing, float(start_L[0] + end_L[0]))
        for place, score in _of_window(encoding, start_L, end_L, top_k, max_tokens).items():
            scores[place] = max(score, scores.get(place, score))
    best = heapq.nsmallest(top_k, scores.items(), key=lambda item: (-item[1], item[0]))
    return [Answer(context[begin:end], begin, end, score) for (begin, end), score in best], nothing


def _of_window(
    window: Encoding, start_L: np.ndarray, end_L: np.ndarray, top_k: int, longest: int
) -> dict[tuple[int, int], float]:
    """Places in the context and scores of a window's pieces, among them the `top_k` best."""
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
