"""The best spans of windows against trying every one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.spans import best_spans


class Window:
    """What `best_spans` reads of an encoding: a question of one token, and words of a context with one letter each."""

    def __init__(self, first, words):
        self.sequence_ids = [None, 0, None, *[1] * words, None]
        self.offsets = [(0, 0), (0, 1), (0, 0), *((2 * i, 2 * i + 1) for i in range(first, first + words)), (0, 0)]


def tried(windows, max_tokens):
    """Place -> the greatest score of a span there, and the least score of no answer."""
    scores, nothing = {}, []
    for window, start, end in windows:
        nothing.append(start[0] + end[0])
        here = [position for position, sequence in enumerate(window.sequence_ids) if sequence == 1]
        for first in here:
            for last in here:
                if first <= last < first + max_tokens:
                    place = window.offsets[first][0], window.offsets[last][1]
                    scores[place] = max(scores.get(place, -np.inf), start[first] + end[last])
    return scores, min(nothing)


# Few letters, so that texts repeat; whole numbers, so that scores do.
@st.composite
def problems(draw):
    letters = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
    logits = st.integers(-5, 5) if draw(st.booleans()) else st.floats(-50, 50, width=16)
    windows = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(0, len(letters) - 1))
        window = Window(first, draw(st.integers(0, len(letters) - first)))
        size = len(window.offsets) + draw(st.integers(0, 3))  # padded
        pair = [np.array(draw(st.lists(logits, min_size=size, max_size=size)), np.float32) for _ in range(2)]
        windows.append((window, *pair))
    return " ".join(letters), windows, draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 5, 30]))


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_as_trying_them_all(problem):
    context, windows, top_k, max_tokens = problem
    spans, nothing = best_spans(context, windows, top_k, max_tokens)
    expected, least = tried(windows, max_tokens)
    assert nothing == least
    assert [span.score for span in spans] == sorted(expected.values(), reverse=True)[:top_k]
    assert len({(span.start, span.end) for span in spans}) == len(spans)
    for span in spans:
        assert span.score == expected[span.start, span.end] and context[span.start : span.end] == span.text


def test_a_context_without_tokens():
    assert best_spans("", [(Window(0, 0), np.ones(4), np.ones(4))]) == ([], 2.0)
