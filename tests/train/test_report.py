"""What a run writes and prints, what a continued run keeps of it, and that the terminal is left as it was."""

import errno
import io
import json
import struct
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from tensorboardX.proto.event_pb2 import Event

import train.report
from train.curves import draw_curves
from train.errors import InputError, StorageError
from train.report import Report
from train.terminal import say_table


def open_report(folder, start=0, total=40):
    return Report(folder, total_steps=total, start_step=start, log_every=10, job="pretrain")


def training_row(step):
    return {"loss": np.float32(10 / step), "learning_rate": 1e-4, "tokens_per_second": 12345.0, "grad_norm": 1.0}


def write(report, start, stop):
    """The loop's order with a row, and an evaluation, every 10 steps."""
    for step in range(start, stop + 1, 10):
        if step:
            report.evaluation(step, {"eval/loss": 1.0 + step, "eval/accuracy": 0.5})
        if step < stop:
            report.train(step + 10, training_row(step + 10))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder):
    kinds = {True: "eval", False: "train"}
    return [(kinds["eval/loss" in row], row["step"]) for row in rows(folder)]


def events(folder):
    found = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_a_run_leaves_rows_events_a_picture_and_plain_lines(tmp_path, capsys):
    with open_report(tmp_path) as report:
        write(report, 0, 40)
        report.message("exported")
    assert steps(tmp_path) == [(kind, step) for step in (10, 20, 30, 40) for kind in ("train", "eval")]
    assert rows(tmp_path)[0] == {"step": 10, "loss": 1.0} | {k: training_row(10)[k] for k in list(training_row(10))[1:]}
    scalars = {(v.tag, e.step): v.simple_value for e in events(tmp_path) for v in e.summary.value}
    assert scalars["train/loss", 20] == 0.5 and scalars["eval/accuracy", 40] == 0.5 and len(scalars) == 24
    assert imread(tmp_path / "curves.png").shape == (832, 1430, 4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"pretrain: steps 0 to 40, a row every 10, in {tmp_path}"
    assert lines[1] == "step 10/40  loss 1  lr 0.0001  12.3k tokens/s"
    assert lines[2] == "evaluation at step 10: loss 11  accuracy 0.5" and lines[-1] == "exported"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl", "tensorboard"]


def test_a_continued_run_has_the_rows_of_one_never_stopped(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with open_report(whole) as report:
        write(report, 0, 40)
    killed = open_report(stopped)
    write(killed, 0, 30)  # the newest checkpoint is that of step 20
    killed._file.write(b'{"step": 40, "lo')
    killed._file.close()
    killed._events.close()
    with open_report(stopped, start=20) as report:
        assert steps(stopped) == [("train", 10), ("eval", 10), ("train", 20), ("eval", 20)]
        write(report, 20, 40)
    assert (whole / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()
    starts = [e.step for e in events(stopped) if e.HasField("session_log")]
    assert starts == [21]


def test_a_run_that_starts_again_starts_empty(tmp_path):
    killed = open_report(tmp_path)
    write(killed, 0, 10)
    killed.close()
    with open_report(tmp_path):
        assert rows(tmp_path) == []
        assert not any(e.summary.value for e in events(tmp_path))


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1.0}', '{"step": "x"}'])
def test_a_foreign_line_is_named_and_nothing_is_written(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    content = '{"step": 1, "loss": 1.0}\n' + line + '\n{"step": 2, "loss": 1.0}\n'
    path.write_text(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: "):
        open_report(tmp_path, start=5)
    assert path.read_text() == content and [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_diverged_loss_is_null_and_still_drawn(tmp_path, capsys):
    with open_report(tmp_path) as report:
        report.train(10, training_row(10) | {"loss": float("nan")})
        report.evaluation(10, {"eval/loss": float("inf"), "eval/accuracy": 0.5})
    assert rows(tmp_path)[0]["loss"] is None and rows(tmp_path)[1]["eval/loss"] is None
    assert "loss nan" in capsys.readouterr().out


def test_evaluation_names_are_checked(tmp_path):
    with open_report(tmp_path) as report, pytest.raises(ValueError, match="'loss' in a row of an evaluation"):
        report.evaluation(10, {"eval/loss": 1.0, "loss": 1.0})


def test_remaining_time_leaves_the_compilation_out(tmp_path, monkeypatch, capsys):
    clock = iter([1000.0, 1010.0, 1030.0])
    with open_report(tmp_path, total=100) as report:
        monkeypatch.setattr(train.report, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        for step in (10, 20, 30):
            report.train(step, training_row(step))
    lines = capsys.readouterr().out.splitlines()
    assert "left" not in lines[1]
    assert lines[2].endswith("0:01:20 left")  # 1 s a step, 80 steps
    assert lines[3].endswith("0:01:45 left")  # 1.5 s a step, 70 steps


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_and_gets_its_cursor_back_after_an_error(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stdout", terminal)
    with pytest.raises(KeyboardInterrupt), open_report(tmp_path) as report:
        report.train(10, training_row(10))
        report.evaluation(10, {"eval/loss": 1.0})
        raise KeyboardInterrupt
    text = terminal.getvalue()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert text.count(hidden) == text.count(shown) == 1 and text.rindex(shown) > text.rindex(hidden)
    assert "10/40" in text and "12.3k tokens/s" in text and "evaluation at step 10: loss 1" in text
    assert (tmp_path / "curves.png").exists()


def test_other_processes_write_and_print_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with open_report(tmp_path / "run") as report:
        write(report, 0, 20)
        report.message("hello")
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("names", [(), ("eval/accuracy",), ("eval/accuracy", "eval/bleu"), ("eval/bleu",)])
def test_curves_of_a_typical_run_are_drawn_with_any_scores(names):
    log = [{"step": s} | training_row(s) for s in range(20, 2001, 20)]
    values = {"eval/accuracy": 0.5, "eval/bleu": 27.0, "eval/loss": 2.0}
    log += [{"step": s} | {n: values[n] for n in ("eval/loss", *names)} for s in range(400, 2001, 400)]
    image = imread(io.BytesIO(draw_curves(log, "pretrain")))
    assert image.std() > 0.05
    assert image[:4].min() == 1.0  # nothing is cut off at the edges
    assert image[-4:].min() == 1.0 and image[:, :4].min() == 1.0 and image[:, -4:].min() == 1.0


def test_skipped_updates_are_shown(tmp_path, capsys):
    with open_report(tmp_path) as report:
        report.train(10, training_row(10) | {"loss": float("nan"), "skipped_updates": 1234})
    assert "loss nan  lr 0.0001  skipped 1,234 that were not finite" in capsys.readouterr().out


def test_an_evaluation_again_takes_the_place_of_the_first(tmp_path):
    with open_report(tmp_path) as report:
        write(report, 0, 20)
    with open_report(tmp_path, start=20) as report:
        report.evaluation(20, {"eval/loss": 9.0})
        report.train(30, training_row(30))
    assert steps(tmp_path) == [("train", 10), ("eval", 10), ("train", 20), ("eval", 20), ("train", 30)]
    assert rows(tmp_path)[3]["eval/loss"] == 9.0


@pytest.mark.parametrize(
    "line",
    [
        *["[1]", "null", '{"loss": 1}', '{"step": "5"}', '{"step": true}', '{"step": -1}', '{"step": 1e400}'],
        *["[" * 100_000, '{"step": 1, "loss": [1]}', '{"step": 1, "loss": 1' + "0" * 400 + "}", "\udcff"],
        '{"step": 1, "loss": NaN}',
    ],
)
def test_a_row_that_is_none(line, tmp_path):
    content = f'{line}\n{{"step": 2, "loss": 1.0}}\n'.encode(errors="surrogateescape")
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl:1: .* is no row; remove it"):
        open_report(tmp_path, start=5)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_a_full_disk_is_one_line_and_no_hang(tmp_path, monkeypatch):
    report = open_report(tmp_path)
    with open("/dev/full", "ab", buffering=0) as full, monkeypatch.context() as patch:
        patch.setattr(report, "_file", full)
        with pytest.raises(StorageError, match="cannot be written any more .No space left on device."):
            report.train(10, training_row(10))
    report.close()


def test_nobody_reads_what_is_printed(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    with open_report(tmp_path) as report:
        write(report, 0, 20)
    assert steps(tmp_path) == [("train", 10), ("eval", 10), ("train", 20), ("eval", 20)]


def test_a_table_breaks_long_lines(capsys):
    say_table("job", [("data", "a " * 100), ("held out", "few")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "job" and lines[-2] == "  held out  few"
    assert max(map(len, lines)) <= 120 and sum(line.count("a ") + line.endswith("a") for line in lines[2:-2]) == 101
