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


def test_a_row_is_what_was_right():
    picture = drawn([[0, 4], [0, 4]], ["x", "y"])
    mirrored = drawn([[4, 0], [4, 0]], ["x", "y"])
    assert picture.shape == mirrored.shape and not np.array_equal(picture, mirrored)
    assert not np.array_equal(picture, drawn([[0, 0], [4, 4]], ["x", "y"]))


@pytest.mark.parametrize("name", ["$x$", "$", "天気", "😀", "_hidden", "w" * 300, "a\\b", "%s"])
def test_any_name_is_drawn_as_it_is(name):
    """A font that lacks a character warns, and warnings are errors here."""
    assert drawn([[1, 0], [2, 3]], [name, "y"]).size


def test_of_many_classes_the_largest_are_drawn_in_their_order(monkeypatch):
    shown = {}
    ticks = matplotlib.axes.Axes.set_yticks
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "set_yticks",
        lambda axes, places, labels, **options: shown.update(labels=labels) or ticks(axes, places, labels, **options),
    )
    sizes = np.arange(MOST_NAMES + 3)
    sizes[0] = 999
    drawn(np.diag(sizes), [f"c{i}" for i in range(len(sizes))])
    assert shown["labels"] == ["c0", *(f"c{i}" for i in range(4, len(sizes)))]


def test_a_class_without_rows():
    assert drawn([[0, 0], [0, 0]], ["x", "y"]).size
