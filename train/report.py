"""What a run tells: progress on the terminal, metrics.jsonl, TensorBoard files and curves.png in the run folder."""

import contextlib
import datetime
import json
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from train.curves import Row, draw_curves, is_evaluation, number_text
from train.errors import InputError, StorageError
from train.events import Events, append
from train.options import LARGEST
from train.terminal import say
from transformer_jax.checkpoints import write_file
from transformer_jax.checks import shown


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
        self._folder, self._job, self._total = Path(folder), job, total_steps
        self._path = self._folder / "metrics.jsonl"
        self._rows = _rows_until(self._path, start_step)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rewrite()
        events = self._folder / "tensorboard"
        if start_step == 0 and events.is_dir():
            shutil.rmtree(events)
        self._events = Events(events, purge_step=start_step + 1 if start_step else None)
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
        self._show(lambda bar: bar.start())

    def train(self, step: int, row: Row) -> None:
        """Records training up to `step` finished updates: `loss`, `learning_rate`, `tokens_per_second` and more."""
        if self._closed:
            return
        row = self._record(step, row)
        self._marks.append((time.monotonic(), step))
        parts = [f"loss {number_text(row['loss'])}", f"lr {number_text(row['learning_rate'])}"]
        if row.get("skipped_updates"):
            parts.append(f"skipped {row['skipped_updates']:,} that were not finite")
        parts += [f"{_short(row['tokens_per_second'])} tokens/s"]
        if remaining := self._remaining(step):
            parts.append(f"{remaining} left")
        if self._bar is None:
            say(f"step {step:,}/{self._total:,}  " + "  ".join(parts))
        self._show(lambda bar: bar.update(self._task, completed=step, status="  ".join(parts)))

    def evaluation(self, step: int, row: Row) -> None:
        """Records an evaluation of the state after `step` updates, in place of an earlier one, and draws the curves.

        Raises:
            ValueError: a name of the row does not begin with `eval/`.
        """
        if wrong := [name for name in row if not name.startswith("eval/")]:
            raise ValueError(f"{wrong[0]!r} in a row of an evaluation does not begin with 'eval/'")
        if self._closed:
            return
        rows = [old for old in self._rows if old["step"] != step or not is_evaluation(old)]
        if len(rows) < len(self._rows):
            self._rows = rows
            self._file.close()
            self._rewrite()
        row = self._record(step, row)
        values = (f"{name.removeprefix('eval/')} {number_text(value)}" for name, value in row.items() if name != "step")
        self.message(f"evaluation at step {step:,}: " + "  ".join(values))
        self._draw()

    def message(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._closed:
            return
        if self._bar is None:
            say(text)
        self._show(lambda bar: bar.console.print(text, markup=False, highlight=False, soft_wrap=True))

    def close(self) -> None:
        """Leaves the terminal as it was, draws the curves and closes the files."""
        if self._closed:
            return
        self._closed = True
        try:
            self._show(lambda bar: bar.stop())
            self._draw()
        finally:
            self._events.close()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StorageError:
            if error is None:  # else what ended the run comes first
                raise

    def _show(self, change: Callable[[Progress], object]) -> None:
        """Changes the bar, if there is one; a terminal that is gone is no reason to stop."""
        try:
            if self._bar is not None:
                change(self._bar)
        except OSError:
            self._bar = None

    def _rewrite(self) -> None:
        with self._storing():
            write_file(self._path, b"".join(_line(row) for row in self._rows))
            self._file = self._path.open("ab", buffering=0)

    def _record(self, step: int, row: Row) -> Row:
        row = {"step": step} | {name: _plain(value) for name, value in row.items()}
        self._rows.append(row)
        numbers = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
        with self._storing():
            append(self._file, _line(row))
            self._events.add(step, {name if "/" in name else f"train/{name}": value for name, value in numbers.items()})
        return row

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._folder} cannot be written any more ({error.strerror or error}); mend that and give the same "
                "command again: it goes on from the last checkpoint"
            ) from None

    def _remaining(self, step: int) -> str | None:
        (first_time, first_step), (last_time, last_step) = self._marks[0], self._marks[-1]
        if last_step == first_step:
            return None
        seconds = (last_time - first_time) / (last_step - first_step) * (self._total - step)
        return str(datetime.timedelta(seconds=round(seconds)))

    def _draw(self) -> None:
        if self._rows:
            with self._storing():
                write_file(self._folder / "curves.png", draw_curves(self._rows, f"{self._job}  ·  {self._folder.name}"))


def _rows_until(path: Path, start_step: int) -> list[Row]:
    """The rows of metrics.jsonl that a run continuing at `start_step` will not write again."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not _is_row(row):
                raise ValueError("no row")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}:{number}: {shown(line)} is no row; remove it") from error
        if row["step"] <= start_step:
            rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    """Whether a row can be one of ours: an object of numbers and text, with a step."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] <= LARGEST:
        return False
    return all(value is None or isinstance(value, str) or _is_number(value) for value in row.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _line(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """What JSON holds: text, integers and numbers; null for what is no number (a loss that diverged)."""
    if isinstance(value, str | bool | int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _short(value: float | None) -> str:
    """12.3k for 12345."""
    if value is None:
        return "nan"
    for unit in ("", "k", "M"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}G"
