"""confusion.png: which class was taken for which, as a picture."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_NAMES = 40  # more cannot be read


def draw_confusion(counts: np.ndarray, names: Sequence[str], title: str) -> bytes:
    """A PNG of a confusion matrix: rows are what is right, columns what was answered, colours the share of a row.

    Args:
        counts: integers [classes, classes]. Of more than 40 classes those are drawn that have the most rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    if len(names) > MOST_NAMES:
        kept = np.sort(np.argsort(-counts.sum(1), kind="stable")[:MOST_NAMES])
        title += f"  ·  the {MOST_NAMES} largest of {len(names)} classes"
        counts, names = counts[np.ix_(kept, kept)], [names[i] for i in kept]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 3.2 + 0.42 * len(names)
    figure = Figure(figsize=(size, size), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color="#222222", parse_math=False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    plain: dict[str, Any] = {"fontsize": 8, "parse_math": False}  # a class may be named $x$
    axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", rotation_mode="anchor", **plain)
    axes.set_yticks(range(len(names)), labels, **plain)
    axes.set_xlabel("answered", fontsize=9, color="#555555")
    axes.set_ylabel("right", fontsize=9, color="#555555")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.6 else "#222222"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=7.5, color=color)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of other scripts: a box is drawn
        figure.savefig(content, format="png")
    return content.getvalue()
