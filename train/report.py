"""What a run tells: progress on the terminal, metrics.jsonl, TensorBoard files and curves.png in the run folder."""

import datetime
import io
import itertools
import json
import math
import shutil
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from train.errors import InputError
from transformer_jax.checkpoints import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
TRAINING, HELD_OUT, FAINT = "#1f5fa8", "#d1495b", "#a9c4e4"
SCORES = (HELD_OUT, "#2a9d8f", "#e09f3e", "#6a4c93", "#8d6b4f", "#5c677d")


class Report:
    """Shows a run from `start_step` to `total_steps` and records it under `folder`.

    On a terminal a live bar, elsewhere plain lines. A run that goes on keeps the rows up to its checkpoint: what the
    interrupted run wrote after it is dropped from metrics.jsonl. Only process 0 writes or prints anything.

    Raises:
        InputError: metrics.jsonl holds a line that is no row, other than a last one cut short.
    """

    def __init__(self, folder: str | Path, *, total_steps: int, start_step: int, log_every: int, job: str) -> None:
        self._closed = jax.process_index() != 0
        if self._closed:
            return
        from tensorboardX import SummaryWriter  # slow to import

        self._folder, self._job, self._total = Path(folder), job, total_steps
        self._path = self._folder / "metrics.jsonl"
        self._rows = _rows_until(self._path, start_step)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_file(self._path, b"".join(_line(row) for row in self._rows))
        self._file = self._path.open("ab")
        events = self._folder / "tensorboard"
        if start_step == 0 and events.is_dir():
            shutil.rmtree(events)
        # TensorBoard hides what an interrupted run wrote from this step on.
        self._events = SummaryWriter(str(events), purge_step=start_step + 1 if start_step else None)
        # (time, step) of rows: the first follows the compilation, so that speed is measured from there.
        self._marks: deque[tuple[float, int]] = deque(maxlen=50)
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TextColumn("{task.fields[status]}"),
                console=Console(),
                expand=True,
            )
            self._task = self._bar.add_task(job, total=total_steps, completed=start_step, status="compiling")
        self.message(f"{job}: steps {start_step} to {total_steps}, a row every {log_every}, in {self._folder}")
        if self._bar is not None:
            self._bar.start()

    def train(self, step: int, row: Row) -> None:
        """Records training up to `step` finished updates: `loss`, `learning_rate`, `tokens_per_second` and more."""
        if self._closed:
            return
        row = self._record(step, row)
        self._marks.append((time.monotonic(), step))
        parts = [f"loss {_number(row['loss'])}", f"lr {_number(row['learning_rate'])}"]
        parts += [f"{_short(row['tokens_per_second'])} tokens/s"]
        if remaining := self._remaining(step):
            parts.append(f"{remaining} left")
        if self._bar is None:
            print(f"step {step:,}/{self._total:,}  " + "  ".join(parts), flush=True)
        else:
            self._bar.update(self._task, completed=step, status="  ".join(parts))

    def evaluation(self, step: int, row: Row) -> None:
        """Records an evaluation of the state after `step` updates, and draws the curves again.

        Raises:
            ValueError: a name of the row does not begin with `eval/`.
        """
        if wrong := [name for name in row if not name.startswith("eval/")]:
            raise ValueError(f"{wrong[0]!r} in a row of an evaluation does not begin with 'eval/'")
        if self._closed:
            return
        row = self._record(step, row)
        values = (f"{name.removeprefix('eval/')} {_number(value)}" for name, value in row.items() if name != "step")
        self.message(f"evaluation at step {step:,}: " + "  ".join(values))
        self._draw()

    def message(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._closed:
            return
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the terminal as it was, draws the curves and closes the files."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._bar is not None:
                self._bar.stop()
            self._draw()
        finally:
            self._events.close()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _record(self, step: int, row: Row) -> Row:
        row = {"step": step} | {name: _plain(value) for name, value in row.items()}
        self._rows.append(row)
        self._file.write(_line(row))
        self._file.flush()
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name if "/" in name else f"train/{name}", value, step)
        return row

    def _remaining(self, step: int) -> str | None:
        (first_time, first_step), (last_time, last_step) = self._marks[0], self._marks[-1]
        if last_step == first_step:
            return None
        seconds = (last_time - first_time) / (last_step - first_step) * (self._total - step)
        return str(datetime.timedelta(seconds=round(seconds)))

    def _draw(self) -> None:
        if self._rows:
            write_file(self._folder / "curves.png", draw_curves(self._rows, f"{self._job}  ·  {self._folder.name}"))


def draw_curves(rows: list[Row], title: str) -> bytes:
    """A PNG of a run: the loss, held-out scores, and below them learning rate and speed, over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter, MaxNLocator

    training = [row for row in rows if not _is_evaluation(row)]
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
    return f"{name} {_number(values[-1])}" if len(values) else name


def _curve(rows: list[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return np.array([x for x, _ in points]), np.array([y for _, y in points], np.float64)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of each point's neighbourhood, a fiftieth of the curve; fewer neighbours at its ends."""
    window = np.ones(2 * (len(values) // 100) + 1)
    if len(values) < len(window):
        return values
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _rows_until(path: Path, start_step: int) -> list[Row]:
    """The rows of metrics.jsonl that a run continuing at `start_step` will not write again."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            # The state of `start_step` is evaluated again; the training that led to it is not repeated.
            keep = row["step"] < start_step + (not _is_evaluation(row))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}:{number}: {line[:60]!r} is no row; remove it") from error
        if keep:
            rows.append(row)
    return rows


def _is_evaluation(row: Row) -> bool:
    return any(name.startswith("eval/") for name in row)


def _line(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """What JSON holds: text, integers and numbers; null for what is no number (a loss that diverged)."""
    if isinstance(value, str | bool | int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _number(value: float | str | None) -> str:
    return "nan" if value is None else f"{value:.4g}" if isinstance(value, int | float) else value


def _short(value: float | None) -> str:
    """12.3k for 12345."""
    if value is None:
        return "nan"
    for unit in ("", "k", "M"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}G"
