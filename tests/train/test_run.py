"""A run folder belongs to one run, one configuration, one set of data and, at a time, one process."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest

from train import seals
from train.errors import InputError
from train.finetune import FinetuneConfig
from train.loop import CheckpointConfig, EvalConfig, JobConfig, LogConfig
from train.optimizer import OptimizerConfig
from train.options import check_options, options, refuse_idle
from train.pretrain import PretrainConfig
from train.run import Run, exporting
from train.sharding import MeshConfig
from train.translate import TranslateConfig
from transformer_jax.checks import Range

ROOT = Path(__file__).parents[2]
DATA = {"a.txt": "0" * 64, "b.txt": "1" * 64}


def config_of(folder, **options):
    optimizer = OptimizerConfig(learning_rate=0.1, schedule="inverse-square-root", warmup_steps=2)
    return dataclasses.replace(JobConfig(folder, ("a.txt", "b.txt"), "", "", 100, optimizer=optimizer), **options)


def begin(folder, data=DATA, job="pretrain", **options):
    with Run(job, config_of(folder, **options)) as run:
        run.begin(data)
        return run.going_on


def refuse(folder, *said, data=DATA, job="pretrain", **options):
    """The run is refused in one line that says all of `said`, and nothing is changed."""
    before = snapshot(folder)
    with pytest.raises(InputError) as caught:
        begin(folder, data, job, **options)
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)
    assert snapshot(folder) == before


def seal(folder, step):
    """A checkpoint as far as its seal goes."""
    path = folder / "checkpoints" / str(step)
    path.mkdir(parents=True)
    seals.write(path, seals.Seal(step, False, None, {}))


def snapshot(folder):
    if not folder.is_dir():
        return folder.read_bytes() if folder.is_file() else None
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# --- the folder --------------------------------------------------------------------------------------------------


def test_a_folder_is_made_and_only_stays_once_the_run_has_begun(tmp_path):
    folder = tmp_path / "deep" / "run"
    with Run("pretrain", config_of(folder)) as run:
        assert folder.is_dir() and not run.going_on
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="bad data"), Run("pretrain", config_of(folder)):
        raise RuntimeError("bad data")
    assert list(tmp_path.iterdir()) == []
    assert begin(folder) is False
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert begin(folder) is True


def test_folders_that_cannot_be_made_are_found_out_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    before = snapshot(tmp_path)
    for folder, said in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "run", "Not a directory"),
        (tmp_path / ("n" * 300), "File name too long"),
        (Path("/proc/run"), ""),  # a file system where nothing can be made
    ):
        with pytest.raises(InputError, match=f"--run .*{said}") as caught, Run("pretrain", config_of(folder)):
            pass
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    [
        *["[1]", "null", "3", '"x"', "{}", '{"job": ', "[" * 100_000, '{"steps": ' + "9" * 6000 + "}", "\x00", "é"],
        '{"job": "pretrain", "fingerprint": 3}', '{"job": "pretrain", "fingerprint": {"a": []}}',
        '{"job": "pretrain", "fingerprint": {}, "optimizer": {"colour": 1}, "steps": 5}',
        '{"job": "pretrain", "fingerprint": {}, "optimizer": [], "steps": 5}',
        '{"job": "pretrain", "fingerprint": {}, "optimizer": {"schedule": {}}, "steps": "5"}',
    ],
)  # fmt: skip
def test_a_config_that_is_none(content, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes(content.encode("utf-8" if content != "é" else "latin-1"))
    refuse(folder, "--run", "another folder")


def test_a_config_that_is_a_folder(tmp_path):
    (tmp_path / "run" / "config.json").mkdir(parents=True)
    refuse(tmp_path / "run", "--run", "config.json cannot be read")


def test_a_folder_of_something_else(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "precious.txt").write_text("no run")
    refuse(folder, "holds no run")


# --- options that may change -------------------------------------------------------------------------------------


def test_how_a_run_is_watched_may_change(tmp_path):
    folder = tmp_path / "run"
    begin(folder)
    changed = {
        "mesh": MeshConfig(fsdp=8), "log": LogConfig(3), "eval": EvalConfig(every=7), "max_bad_steps": 4,
        "checkpoint": CheckpointConfig(every=9, keep=5), "remat": "full",
    }  # fmt: skip
    assert begin(folder, **changed) is True
    assert json.loads((folder / "config.json").read_text())["eval"]["every"] == 7


def test_what_would_change_the_past_is_refused_with_the_way_that_works(tmp_path):
    folder = tmp_path / "run"
    begin(folder)
    way = f"--model {folder}/export"
    refuse(folder, "--seed is 0 there and 1 here", way, seed=1)
    refuse(folder, "--dtype", way, dtype="bfloat16")
    refuse(folder, "--eval.data", way, eval=EvalConfig(data=("c.txt",)))
    refuse(folder, "the job is 'pretrain' there and 'translate' here", job="translate")
    optimizer = dataclasses.replace(config_of(folder).optimizer, beta1=0.8)
    refuse(folder, "--optimizer.beta1", way, optimizer=optimizer)


@pytest.mark.parametrize(
    ("schedule", "done", "allowed"),
    [
        *[("inverse-square-root", 60, True), ("cosine", 60, False), ("linear", 60, False), ("cosine", 0, True)],
        # The last tenth of 100 steps decays.
        *[("warmup-stable-decay", 60, True), ("warmup-stable-decay", 90, True), ("warmup-stable-decay", 95, False)],
    ],
)
def test_a_run_may_get_longer_where_its_past_does_not_depend_on_its_end(schedule, done, allowed, tmp_path):
    folder = tmp_path / "run"
    optimizer = OptimizerConfig(learning_rate=0.1, schedule=schedule, warmup_steps=2)
    begin(folder, optimizer=optimizer)
    if done:
        seal(folder, done)
    if allowed:
        assert begin(folder, optimizer=optimizer, steps=200) is True
        assert json.loads((folder / "config.json").read_text())["steps"] == 200
    else:
        refuse(folder, "--steps is 100 there and 200 here", optimizer=optimizer, steps=200)


def test_a_run_cannot_end_before_its_checkpoints(tmp_path):
    begin(tmp_path / "run")
    seal(tmp_path / "run", 60)
    (tmp_path / "run" / "checkpoints" / "999").mkdir()  # has no seal: it is no checkpoint
    assert begin(tmp_path / "run", steps=60) is True
    refuse(tmp_path / "run", "--steps 59", "checkpoint of step 60", steps=59)


# --- data and processes ------------------------------------------------------------------------------------------


def test_other_data_is_refused_by_name(tmp_path):
    begin(tmp_path / "run")
    refuse(tmp_path / "run", "b.txt", "is not what it was", data={**DATA, "b.txt": "2" * 64})
    refuse(tmp_path / "run", "a.txt", data={"b.txt": DATA["b.txt"]})
    assert begin(tmp_path / "run", data=dict(reversed(DATA.items()))) is True


def test_a_second_process_is_refused_with_the_owner_and_a_crash_releases(tmp_path):
    folder = tmp_path / "run"
    begin(folder)
    program = f"""
        import os, sys
        from pathlib import Path
        from train.run import _lock
        _lock(Path({str(folder)!r}))
        print("locked", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as other:
        assert other.stdout.readline() == "locked\n"
        refuse(folder, f"in use by process {other.pid} on {os.uname().nodename}")
        other.kill()
    assert (folder / ".lock").exists()
    assert begin(folder) is True
    assert not (folder / ".lock").exists()


def test_two_runs_in_one_process_are_two(tmp_path):
    folder = tmp_path / "run"
    with Run("pretrain", config_of(folder)), pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
        begin(folder)
    assert list(tmp_path.iterdir()) == []


# --- numbers -----------------------------------------------------------------------------------------------------

JOBS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "translate": TranslateConfig}


def replaced(config, option, value):
    first, _, rest = option.removeprefix("--").replace("-", "_").partition(".")
    return dataclasses.replace(config, **{first: replaced(getattr(config, first), rest, value) if rest else value})


def kinds(hint):
    """The types of an option, out of Annotated and unions, and its range."""
    extras = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]
    plain = get_args(hint)[0] if extras else hint
    return {plain, *get_args(plain)}, next(iter(extras), None)


@pytest.mark.parametrize("job", JOBS)
def test_every_number_has_a_range_and_is_checked(job):
    config = JOBS[job]()
    check_options(config)
    walked = 0
    for option, _, hint in options(config):
        types, allowed = kinds(hint)
        if not {int, float} & types:
            continue
        assert allowed is not None, f"{option} is a number without a range"
        step = 1 if int in types else 1e-3
        wrong = [allowed.low if allowed.open_low else allowed.low - step]
        wrong += [allowed.high if allowed.open_high else allowed.high + step] if allowed.high < math.inf else []
        wrong = [value for value in wrong if value not in allowed.also]
        for value in [*wrong, math.nan, math.inf, -(10**400), True, "1", [1]]:
            with pytest.raises(InputError, match=option) as caught:
                check_options(replaced(config, option, value))
            assert "\n" not in str(caught.value)
        for value in [*([] if allowed.open_low else [allowed.low]), *allowed.also]:
            check_options(replaced(config, option, value))
        walked += 1
    assert walked > 20


def test_an_option_without_meaning_is_refused():
    with pytest.raises(InputError, match="--vocab-size 99 has no meaning beside --tokenizer there; leave it out"):
        refuse_idle(PretrainConfig(vocab_size=99), ("preset", "vocab_size"), "beside --tokenizer there")
    refuse_idle(PretrainConfig(), ("preset", "vocab_size"), "beside --tokenizer there")
    with pytest.raises(InputError, match=r"--eval\.data \('x',\) has no meaning"):
        refuse_idle(EvalConfig(data=("x",)), ("data",), "without --data", "--eval.")


def test_an_export_is_whole_or_not_there(tmp_path):
    for content in ("first", "second"):
        with exporting(tmp_path) as folder:
            (folder / "model").write_text(content)
            assert not (tmp_path / "export").exists() or (tmp_path / "export" / "model").read_text() == "first"
        assert (tmp_path / "export" / "model").read_text() == content
    with pytest.raises(RuntimeError), exporting(tmp_path) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["model"]
    with exporting(tmp_path) as folder:
        assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
