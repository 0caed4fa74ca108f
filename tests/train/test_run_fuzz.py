"""A run's files of any content: the run goes on as it should, or is refused in one line; never anything else."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train.report
from tests.fuzzing import EXAMPLES, Raw, broken, damaged, fuzz, json_text, outcome
from tests.train.test_run import DATA, begin, seal
from tests.train.test_seals import assert_goes_on_from, cut, empty, flip, lengthen, remove, template  # noqa: F401
from train.errors import InputError
from train.optimizer import OptimizerConfig
from train.report import Report
from train.run import FREE, SCHEDULE

# --- config.json -------------------------------------------------------------------------------------------------

DONE = 50


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that has begun and has a checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    begin(folder)
    seal(folder, DONE)
    return folder


def rates(config):
    """Learning rates of the updates that were made."""
    step, optimizer = np.arange(DONE), dataclasses.asdict(OptimizerConfig()) | config["optimizer"]
    steps, peak, warmup = config["steps"], optimizer["learning_rate"], optimizer["warmup_steps"]
    left = np.clip((steps - step) / max(steps - warmup, 1), 0, 1)
    factor = {
        "linear": left,
        "cosine": (1 - np.cos(np.pi * left)) / 2,
        "inverse-square-root": np.sqrt(max(warmup, 1) / (step + 1)),
        "warmup-stable-decay": np.clip((steps - step) / (optimizer["decay_steps"] or max(1, steps // 10)), 0, 1),
    }[optimizer["schedule"]]
    return peak * np.where(step < warmup, (step + 1) / max(warmup, 1), factor)


def flat(tree, prefix=""):
    items = ((f"{prefix}{name}", value) for name, value in tree.items())
    return {k: v for n, x in items for k, v in (flat(x, f"{n}.") if isinstance(x, dict) else {n: x}).items()}


def among(name, options):
    return any(name == option or name.startswith(f"{option}.") for option in options)


@fuzz
@given(data=st.data())
def test_config(begun, tmp_path, data):
    folder = tmp_path / "run"
    if not folder.exists():
        shutil.copytree(begun, folder)
    path, right = folder / "config.json", json.loads((begun / "config.json").read_text())
    right["run"] = str(folder)
    tree = dict(right)
    if data.draw(st.booleans()):  # a schedule of which the past is another, or just the future
        tree["steps"] = data.draw(st.sampled_from([100, 50, 49, 1000, 100.0, 0]))
        tree["optimizer"] = tree["optimizer"] | data.draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "schedule": st.sampled_from(["linear", "cosine", "warmup-stable-decay", "inverse-square-root", ""]),
                    "warmup_steps": st.integers(-1, 60),
                    "decay_steps": st.none() | st.integers(0, 60),
                    "learning_rate": st.sampled_from([0.1, 0.2, 0.1000000000000001, None, Raw("1e-999"), "0.1"]),
                },
            )
        )
    content = data.draw(damaged(json_text(tree)))
    path.write_bytes(content)

    def going_on():
        try:
            return begin(folder)
        finally:
            written.append(path.read_bytes())
            path.write_bytes(content)  # what `outcome` asks of a reader

    written = []
    result = outcome(going_on, folder, InputError)
    if result is None:
        assert written == [content] and content != json.dumps(right).encode()
        return
    assert result is True and json.loads(written[0]) == right
    said, wanted = flat(json.loads(content)), flat(right)
    assert list(json.loads(content)["fingerprint"].values()) == list(DATA.values())
    other = [name for name in said.keys() | wanted.keys() if said.get(name) != wanted.get(name)]
    other = [name for name in other if not among(name, (*FREE, "fingerprint"))]
    assert all(among(name, SCHEDULE) for name in other), other
    if other:
        with np.errstate(all="ignore"):
            before = rates(json.loads(content))
        np.testing.assert_allclose(before, rates(right), rtol=1e-5)


@pytest.mark.parametrize("edit", [{"\n": 1}, {"x" * 3000: 1}, {"steps": 2**31}, {"steps": 100.0}, {"steps": "100"}])
def test_a_config_that_no_run_wrote(tmp_path, edit):
    folder = tmp_path / "run"
    begin(folder)
    seal(folder, DONE)
    content = json.loads((folder / "config.json").read_text()) | edit
    (folder / "config.json").write_text(json.dumps(content))
    assert outcome(lambda: begin(folder, steps=101), folder, InputError) is None


# --- metrics.jsonl -----------------------------------------------------------------------------------------------

ROW = {"step": 10, "loss": 2.5, "learning_rate": 1e-4, "tokens_per_second": 12345.0, "grad_norm": 1.0}
START = 20


@st.composite
def metrics(draw):
    rows = []
    for step in draw(st.lists(st.sampled_from([5, 10, 20, 21, 30]), min_size=1, max_size=4)):
        row = {"step": step, "eval/loss": 1.5, "eval/bleu": 30.0} if draw(st.booleans()) else ROW | {"step": step}
        rows.append(draw(json_text(row)) if draw(st.integers(0, 2)) == 0 else json.dumps(row))
    content = draw(damaged(st.just("".join(f"{row}\n" for row in rows))))
    return draw(broken(content)) if content else content


def rows_of(content):
    """The rows that stay, of a file that is all right but for its last line."""
    lines = content.splitlines()
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            assert line is lines[-1]
    if rows and len(rows) == len(lines) and not is_row(rows[-1]):
        rows.pop()
    assert all(map(is_row, rows))
    return [row for row in rows if row["step"] <= START]


def is_row(row):
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return False
    numbers = [value for value in row.values() if isinstance(value, int | float)]
    return all(value is None or isinstance(value, int | float | str) for value in row.values()) and all(
        abs(number) < 1.8e308 for number in numbers
    )


def open_report(tmp_path, content):
    """The report of a run that goes on; None where it is refused, and nothing was written."""
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir()
    (tmp_path / "metrics.jsonl").write_bytes(content)
    opened = []

    def read():
        opened.append(Report(tmp_path, total_steps=99, start_step=START, log_every=10, job="pretrain"))
        kept.append((tmp_path / "metrics.jsonl").read_bytes())
        shutil.rmtree(tmp_path / "tensorboard")
        (tmp_path / "metrics.jsonl").write_bytes(content)
        return opened[0]

    kept = []
    report = outcome(read, tmp_path, InputError)
    return None if report is None else (report, kept[0])


def check_rows(tmp_path, content, opened):
    report, kept = opened
    report.close()
    assert [json.loads(line) for line in kept.splitlines()] == rows_of(content)
    assert kept == b"" or kept.endswith(b"\n")


@fuzz
@given(content=metrics())
def test_metrics(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setattr(train.report, "draw_curves", lambda rows, title: b"")
    opened = open_report(tmp_path, content)
    if opened is not None:
        check_rows(tmp_path, content, opened)


@settings(fuzz, max_examples=max(3, EXAMPLES // 20))
@given(content=metrics())
def test_curves(tmp_path, capsys, content):
    opened = open_report(tmp_path, content)
    if opened is not None:
        opened[0].train(30, ROW)
        check_rows(tmp_path, content, opened)
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


# --- checkpoints -------------------------------------------------------------------------------------------------


@settings(fuzz, max_examples=max(3, EXAMPLES // 2))
@given(seed=st.integers(0, 2**32), data=st.data())
def test_checkpoints(template, tmp_path, seed, data):  # noqa: F811
    """Random damage to the two newest of three checkpoints, in any of their files."""
    rng, folder = random.Random(seed), tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    for _ in range(data.draw(st.integers(0, 3))):
        paths = [path for step in ("200", "300") for path in sorted((folder / step).rglob("*")) if path.is_file()]
        path = paths[data.draw(st.integers(0, len(paths) - 1))]
        harm = data.draw(st.sampled_from([flip, cut, empty, remove, lengthen]))
        if path.stat().st_size or harm in (remove, lengthen):
            harm(path, rng)
    changed = {step: contents(folder / step) != contents(template / step) for step in ("200", "300")}
    sealed = {step: contents(folder / step).get("SEAL") == contents(template / step)["SEAL"] for step in changed}
    # What a seal says is seen at once; what is behind it, when the checkpoint is the newest.
    damaged = [step for step in changed if not sealed[step]]
    if changed["300"] and sealed["300"]:
        damaged.append("300")
    if changed["300"] and changed["200"] and sealed["200"]:
        damaged.append("200")
    newest = 300 if not changed["300"] else 100 if changed["200"] else 200
    assert_goes_on_from(newest, folder, damaged=damaged)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
