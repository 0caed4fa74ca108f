"""The picture of a confusion matrix."""

import io

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.image import imread

from train.confusion import MOST_NAMES, draw_confusion


def drawn(counts, names):
    """The pixels, [height, width, 4]."""
    return imread(io.BytesIO(draw_confusion(np.array(counts), names, "a run")), format="png")


@pytest.fixture
def calls(monkeypatch):
    """What is handed to methods of the axes: name -> arguments of the last call."""
    found = {}
    for name in ("imshow", "set_yticks", "set_xticks", "text"):
        method = getattr(matplotlib.axes.Axes, name)

        def spy(axes, *arguments, name=name, method=method, **options):
            found.setdefault(name, []).append(arguments)
            return method(axes, *arguments, **options)

        monkeypatch.setattr(matplotlib.axes.Axes, name, spy)
    return found


def test_a_row_is_what_was_right(calls):
    drawn([[1, 3], [0, 0]], ["x", "y"])
    (((shares,),), (texts)) = calls["imshow"], calls["text"]
    assert shares.tolist() == [[0.25, 0.75], [0.0, 0.0]]  # of a class without rows there is none
    assert [(*place, text) for *place, text in texts] == [(0, 0, "1"), (1, 0, "3")]  # x, the answer, comes first
    assert calls["set_xticks"][0][1] == calls["set_yticks"][0][1] == ["x", "y"]


@pytest.mark.parametrize("name", ["$x$", "$\\frac$", "天気", "😀", "_hidden", "w" * 300, "a\\b", "%s"])
def test_any_name_is_drawn_as_it_is(name):
    """A font that lacks a character warns, and warnings are errors here."""
    assert drawn([[1, 0], [2, 3]], [name, "y"]).size


def test_of_many_classes_the_largest_are_drawn_in_their_order(calls):
    sizes = np.arange(MOST_NAMES + 3)
    sizes[0] = 999
    drawn(np.diag(sizes), [f"c{i}" for i in range(len(sizes))])
    assert calls["set_yticks"][0][1] == ["c0", *(f"c{i}" for i in range(4, len(sizes)))]
    assert len(calls["text"]) == MOST_NAMES and calls["text"][0][2] == "999"
