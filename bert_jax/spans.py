"""Answers as spans of a context, from the logits of its windows (Devlin et al. 2019, section 4.2)."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

CANDIDATES = 20  # first and last tokens of each window that are combined, as in the original


class Span(NamedTuple):
    """A part of a context, by characters, and the sum of its ends' logits."""

    text: str
    start: int
    end: int
    score: float


def best_spans(
    context: str, windows: Iterable[tuple[Encoding, np.ndarray, np.ndarray]], top_k: int = 20, max_tokens: int = 30
) -> tuple[list[Span], float]:
    """(the `top_k` best spans of different text, best first, the score of no answer).

    A span lies in one window, is not longer than `max_tokens`, and scores the sum of its first token's start logit and
    its last one's end logit. No answer scores the same sum at [CLS], the least of all windows (section 4.3).

    Args:
        windows: of each its encoding (see `BertTokenizer.encode_windows`) and start and end logits, [L] or longer.
    """
    best: dict[str, Span] = {}
    nothing = np.inf
    for encoding, start_L, end_L in windows:
        nothing = min(nothing, float(start_L[0]) + float(end_L[0]))
        at = np.flatnonzero(np.array([sequence == 1 for sequence in encoding.sequence_ids]))
        starts = at[np.argsort(-start_L[at], kind="stable")[:CANDIDATES]]
        ends = at[np.argsort(-end_L[at], kind="stable")[:CANDIDATES]]
        for first in starts.tolist():
            for last in ends[(ends >= first) & (ends < first + max_tokens)].tolist():
                score = float(start_L[first]) + float(end_L[last])
                begin, end = encoding.offsets[first][0], encoding.offsets[last][1]
                text = context[begin:end]
                if text not in best or score > best[text].score:
                    best[text] = Span(text, begin, end, score)
    return sorted(best.values(), key=lambda span: -span.score)[:top_k], nothing
