"""curves.png: what a run did, as a picture."""

import io
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
TRAINING, HELD_OUT, FAINT = "#1f5fa8", "#d1495b", "#a9c4e4"
SCORES = (HELD_OUT, "#2a9d8f", "#e09f3e", "#6a4c93", "#8d6b4f", "#5c677d")


def draw_curves(rows: list[Row], title: str) -> bytes:
    """A PNG of a run: the loss, held-out scores, and below them learning rate and speed, over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter, MaxNLocator

    training = [row for row in rows if not is_evaluation(row)]
    names = list(dict.fromkeys(name for row in rows for name in row if name.startswith("eval/")))
    losses = [name for name in names if name.endswith("loss")]
    curves = {name: _curve(rows, name) for name in names}
    # Shares and percentages would flatten each other on one axis.
    scores = [name for name in names if name not in losses]
    shares = [name for name in scores if np.nanmax(np.abs(curves[name][1]), initial=0.0) <= 1.0]
    groups = [group for group in (shares, [name for name in scores if name not in shares]) if group]

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.04, wspace=0.03)
    figure = Figure(figsize=(11, 6.4), dpi=130, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color="#222222")
    grid = figure.add_gridspec(2, 12, height_ratios=(2.3, 1))
    edges = {0: (0, 12), 1: (0, 7, 12), 2: (0, 6, 9, 12)}[len(groups)]
    tops = [figure.add_subplot(grid[0, a:b]) for a, b in itertools.pairwise(edges)]
    middle = edges[1] if groups else 6
    rate, speed = figure.add_subplot(grid[1, :middle]), figure.add_subplot(grid[1, middle:])

    _panel(tops[0], "Loss")
    steps, values = _curve(training, "loss")
    smooth = _smoothed(values)
    tops[0].plot(steps, values, color=FAINT, linewidth=0.8)
    if len(values):
        _line_or_dot(tops[0], steps, smooth, label=_label("training, smoothed", smooth))
    for name, color in zip(losses, itertools.cycle(SCORES)):
        _held_out(tops[0], name, *curves[name], color)
    for axes, group in zip(tops[1:], groups, strict=True):
        _panel(axes, "Held-out scores")
        for name, color in zip(group, itertools.cycle(SCORES)):
            _held_out(axes, name, *curves[name], color)
    for axes in tops:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8.5, loc="best")

    steps, values = _curve(training, "learning_rate")
    exponent = math.floor(math.log10(values.max(initial=0.0) or 1.0))
    _panel(rate, f"Learning rate × $10^{{{exponent}}}$")
    _line_or_dot(rate, steps, values / 10.0**exponent)
    _panel(speed, "Tokens per second")
    _line_or_dot(speed, *_curve(training, "tokens_per_second"))
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (rate, speed):
        axes.set_ylim(bottom=0)
    for axes in (*tops, rate, speed):
        axes.set_xlim(0, max(row["step"] for row in rows) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _panel(axes: "Axes", heading: str) -> None:
    axes.set_title(heading, loc="left", fontsize=10, color="#222222")
    axes.set_xlabel("step", fontsize=9, color="#555555")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, colors="#555555", length=3)
    axes.margins(x=0.02)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#999999")


def _line_or_dot(axes: "Axes", steps: np.ndarray, values: np.ndarray, label: str | None = None) -> None:
    marker = "o" if len(values) == 1 else None
    axes.plot(steps, values, color=TRAINING, linewidth=1.5, marker=marker, markersize=4.5, label=label)


def _held_out(axes: "Axes", name: str, steps: np.ndarray, values: np.ndarray, color: str) -> None:
    label = _label(name if name.endswith("loss") else name.removeprefix("eval/"), values)
    axes.plot(steps, values, color=color, linewidth=1.6, marker="o", markersize=4.5, label=label, clip_on=False)


def _label(name: str, values: np.ndarray) -> str:
    return f"{name} {number_text(values[-1])}" if len(values) else name


def _curve(rows: list[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return np.array([x for x, _ in points]), np.array([y for _, y in points], np.float64)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each point's neighbourhood, a fiftieth of the curve; fewer neighbours at its ends."""
    window = np.ones(2 * (len(values) // 100) + 1)
    if len(values) < len(window):
        return values
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def is_evaluation(row: Row) -> bool:
    return any(name.startswith("eval/") for name in row)


def number_text(value: float | str | None) -> str:
    return "nan" if value is None else f"{value:.4g}" if isinstance(value, int | float) else value
