"""The loop on a model of one matrix: what is skipped, saved, owed and interrupted."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.checkpoint import Checkpoints
from train.errors import Diverged
from train.loop import (
    CheckpointConfig,
    EvalConfig,
    JobConfig,
    LogConfig,
    Task,
    make_program,
    open_checkpoints,
    per_epoch,
    say_verdict,
    train,
    where_it_goes_on,
)
from train.optimizer import OptimizerConfig
from train.run import Run
from train.sharding import MeshConfig, make_mesh
from train.signals import SIGNALS, Interrupted, stopping
from transformer_jax import Projection

D, ROWS, STEPS = 4, 8, 12


class Matrix(nn.Module):
    @nn.compact
    def __call__(self, x_BD):
        return Projection("BD,DE->BE", (D, D), ("embed", None))(x_BD)


class Distance:
    terms = ("distance",)

    def prepare(self, batch, key):
        rows = jnp.float32(ROWS)
        return batch, {"distance": rows, "tokens": rows}

    def sums(self, params, batch, dropout_key):
        out = Matrix().apply({"params": params}, batch["x"])
        return {"distance": jnp.sum(jnp.abs(out - batch["y"]))}


class Batches:
    """Batch k is a function of k; `spoiled[k]` stands in all of its inputs."""

    def __init__(self, spoiled=None, at=None, act=None):
        self.spoiled, self.at, self.act = spoiled or {}, at, act

    def __len__(self):
        return STEPS

    def __getitem__(self, k):
        if k == self.at:
            self.act()
        rng = np.random.default_rng(k)
        x = rng.normal(size=(ROWS, D)).astype(np.float32)
        y = rng.normal(size=(ROWS, D)).astype(np.float32)
        return {"x": np.full_like(x, self.spoiled[k]) if k in self.spoiled else x, "y": y}


def go(folder, batches=None, loss=1.0, objective=None, of_task=None, **options):
    config = JobConfig(
        run=folder, data=(), preset="", model="", steps=STEPS, log=LogConfig(1), eval=EvalConfig(every=6),
        checkpoint=CheckpointConfig(every=2, keep=3), max_bad_steps=3, mesh=MeshConfig(),
        optimizer=OptimizerConfig(learning_rate=0.1, schedule="inverse-square-root", warmup_steps=2),
    )  # fmt: skip
    config = dataclasses.replace(config, **options)
    inputs = (jax.ShapeDtypeStruct((ROWS, D), jnp.float32),)

    def evaluate(params):
        return {"eval/loss": loss if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)) else math.nan}

    task = Task("test", Matrix(), inputs, objective or Distance(), batches or Batches(), evaluate)
    task = task._replace(**of_task or {})
    with Run("test", config) as run:
        run.begin({})
        state, _ = train(task, config, make_mesh(config.mesh))
    return jax.tree.map(np.asarray, state)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def regular(folder):
    with open_checkpoints(JobConfig(folder, (), "", "", STEPS, checkpoint=CheckpointConfig(keep=9))) as checkpoints:
        return checkpoints.regular_steps()


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, go(folder)


@pytest.mark.parametrize("spoiled", [math.nan, math.inf, 1e25])  # the last: a finite loss, but a gradient that is not
def test_an_update_that_is_not_finite_is_skipped_and_counted(spoiled, tmp_path):
    state = go(tmp_path / "run", Batches({4: spoiled}))
    losses = {row["step"]: row for row in rows(tmp_path / "run") if "loss" in row}
    assert losses[5]["loss"] is None or losses[5]["loss"] > 1e20
    assert [losses[step]["skipped_updates"] for step in range(1, STEPS + 1)] == [0] * 4 + [1] * (STEPS - 4)
    assert state.skipped == 1 and state.step == STEPS
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def test_a_skipped_update_changes_nothing_but_the_counts(tmp_path):
    before = go(tmp_path / "four", steps=4)
    after = go(tmp_path / "five", Batches({4: math.nan}), steps=5, max_bad_steps=9)
    assert_same(before.params, after.params)
    for old, new in zip(jax.tree.leaves(before.opt_state), jax.tree.leaves(after.opt_state), strict=True):
        np.testing.assert_array_equal(old + (old.dtype == np.int32), new)


def test_a_checkpoint_that_was_due_in_bad_steps_is_made_up_for(tmp_path):
    go(tmp_path / "run", Batches({9: math.nan, 10: math.nan}), checkpoint=CheckpointConfig(every=10, keep=3))
    assert regular(tmp_path / "run") == [STEPS]  # the state of step 10 had no good update behind it, nor that of 11
    go(
        tmp_path / "more",
        Batches({5: math.nan}),
        checkpoint=CheckpointConfig(every=6, keep=3),
        eval=EvalConfig(every=9),
    )
    assert regular(tmp_path / "more") == [7, 12]


def test_a_checkpoint_that_is_owed_is_due_when_a_signal_comes(tmp_path):
    """Otherwise the run that goes on would keep, and average, others than the one that was never stopped."""
    sixes = {"checkpoint": CheckpointConfig(every=6, keep=3), "eval": EvalConfig(every=9)}

    class Sender(Distance):
        def prepare(self, batch, key):
            def send(x):
                if np.isnan(x).any():
                    os.kill(os.getpid(), signal.SIGTERM)

            jax.debug.callback(send, batch["x"])
            return super().prepare(batch, key)

    with pytest.raises(Interrupted) as caught:
        go(tmp_path / "run", Batches({5: math.nan}), objective=Sender(), **sixes)
    assert "the same command" in caught.value.message
    go(tmp_path / "run", Batches({5: math.nan}), **sixes)
    assert regular(tmp_path / "run") == [7, 12]


def test_too_many_bad_steps_in_a_row_stop_the_run(tmp_path):
    folder = tmp_path / "run"
    spoiled = Batches(dict.fromkeys(range(6, STEPS), math.nan))
    with pytest.raises(Diverged, match=r"in 3 steps in a row, up to step 9 \(batch 8\).* checkpoint is that of step 6"):
        go(folder, spoiled)
    assert Diverged.exit_code == 3 and regular(folder) == [2, 4, 6]
    # With whole data the run goes on from there, and is the one that never met bad data.
    assert_same(go(folder).params, go(tmp_path / "whole").params)


def test_bad_steps_with_good_ones_between_them_do_not(tmp_path):
    assert go(tmp_path / "run", Batches(dict.fromkeys((1, 2, 4, 5, 7, 8), math.nan))).skipped == 6


@pytest.mark.parametrize(("rate", "said"), [(1e38, "in a row"), (3e38, "in a row")])
def test_ruined_parameters_are_never_saved(rate, said, tmp_path):
    optimizer = OptimizerConfig(learning_rate=rate, clip_norm=0.0, schedule="inverse-square-root")
    with pytest.raises(Diverged, match=f"{said}.*there is no checkpoint"):
        go(tmp_path / "run", optimizer=optimizer)
    assert regular(tmp_path / "run") == []


def test_too_many_bad_steps_at_the_end(tmp_path):
    with pytest.raises(Diverged, match=r"in 3 steps in a row, up to step 12 \(batch 11\)"):
        go(tmp_path / "run", Batches(dict.fromkeys((9, 10, 11), math.nan)))


def test_a_last_state_that_is_of_no_use_is_an_error(tmp_path):
    with pytest.raises(Diverged, match="the last state, of step 12, is of no use.* checkpoint is that of step 10"):
        go(tmp_path / "run", loss=math.nan, eval=EvalConfig(every=100))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_end(number, whole, tmp_path):
    folder = tmp_path / "run"
    sender = Batches(at=7, act=lambda: os.kill(os.getpid(), number))
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted) as caught:
        go(folder, sender)
    assert caught.value.exit_code == 128 + number and caught.value.signal == number
    step = int(caught.value.message.split("goes on from step ")[1])
    assert 2 <= step < STEPS
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert_same(go(folder), whole[1])
    assert regular(folder) == regular(whole[0]) == [6, 8, 10, 12]  # all are as good, so that the first is the best

    def facts(folder):
        return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows(folder)]

    assert facts(folder) == facts(whole[0])


def test_a_signal_while_a_run_closes_is_not_lost(tmp_path, monkeypatch):
    close = Checkpoints.close

    def close_later(checkpoints):
        os.kill(os.getpid(), signal.SIGTERM)
        close(checkpoints)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after the last step"):
        patch.setattr(Checkpoints, "close", close_later)
        go(tmp_path / "run", steps=2)
    assert regular(tmp_path / "run") == [2]


def test_where_a_run_without_checkpoint_goes_on(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        assert where_it_goes_on(checkpoints, 3) == "at step 3; there is no checkpoint yet: the same command starts anew"


def test_a_second_signal_ends_the_program_and_ignored_ones_stay_ignored():
    with stopping() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
        assert all(signal.getsignal(each) == signal.SIG_DFL for each in SIGNALS)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.asked is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_longer_run_keeps_the_evaluations_of_the_shorter_one(tmp_path):
    folder = tmp_path / "run"
    go(folder, steps=5)
    go(folder, steps=STEPS)
    assert [row["step"] for row in rows(folder) if "eval/loss" in row] == [5, 6, 12]
    assert [row["step"] for row in rows(folder) if "loss" in row] == [*range(1, 13)]


def test_a_model_worse_than_guessing_is_said(capsys):
    say_verdict(math.log(100), 100)
    assert not capsys.readouterr().out
    for loss in (1e10, math.nan, 6.0):
        say_verdict(loss, 100)
        assert "worse than that of guessing (4.61 nat" in capsys.readouterr().out


class Scores:
    """Evaluations that score what they are told, one after the other."""

    def __init__(self, *scores):
        self.scores, self.seen = scores, {}

    def __call__(self, params):
        # By the parameters: an evaluation that is made again after a restart is no new one.
        key = np.asarray(jax.tree.leaves(params)[0]).tobytes()
        self.seen.setdefault(key, self.scores[len(self.seen)])
        return {"eval/loss": 1.0, "eval/score": self.seen[key]}


def patient(folder, scores, **options):
    task = {"evaluate": scores, "best": "eval/score", "best_mode": "max", "keeps_best": True}
    rare = CheckpointConfig(every=1000, keep=1)
    return go(folder, of_task=task, eval=EvalConfig(every=2, patience=2), checkpoint=rare, **options)


def test_a_run_ends_when_its_score_gets_no_better(tmp_path, capsys):
    state = patient(tmp_path / "run", Scores(0.1, 0.5, 0.4, 0.3, 0.9, 0.9))
    assert state.step == 8  # evaluated at 2, 4, 6 and 8: the best is two evaluations old
    assert "ends at step 8: eval/score has not been better for 2 evaluations" in capsys.readouterr().out
    with Checkpoints(
        tmp_path / "run" / "checkpoints", keep_latest=1, best_metric="eval/score", best_mode="max"
    ) as kept:
        assert kept.best_step() == 4 and kept.steps() == [4, 8]
    # The same command finds that it has ended; one with more patience goes on.
    assert patient(tmp_path / "run", Scores(0.3)).step == 8


def test_a_run_that_gets_better_is_not_ended(tmp_path):
    assert patient(tmp_path / "run", Scores(0.1, 0.2, 0.1, 0.3, 0.2, 0.4)).step == STEPS


def test_patience_outlasts_an_interruption(tmp_path):
    scores = Scores(0.5, 0.4, 0.3, 0.9)
    stop = Batches(at=5, act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        patient(tmp_path / "run", scores, batches=stop)
    assert patient(tmp_path / "run", scores).step == 6


def test_runs_of_several_seeds_share_one_compilation(tmp_path):
    traced = []

    class Counting(Distance):
        def sums(self, params, batch, dropout_key):
            traced.append(1)
            return super().sums(params, batch, dropout_key)

    config = JobConfig(
        run=tmp_path, data=(), preset="", model="", steps=2, eval=EvalConfig(every=9), mesh=MeshConfig(),
        optimizer=OptimizerConfig(learning_rate=0.1),
    )  # fmt: skip
    inputs = (jax.ShapeDtypeStruct((ROWS, D), jnp.float32),)
    task = Task("test", Matrix(), inputs, Counting(), Batches(), lambda params: {"eval/loss": 1.0})
    mesh = make_mesh(config.mesh)
    program = make_program(task, config, mesh)
    states, counts = [], []
    for seed in range(3):
        states.append(train(task, dataclasses.replace(config, seed=seed, run=tmp_path / str(seed)), mesh, program)[0])
        counts.append(len(traced))
    assert counts[0] == counts[2] > 0
    kernels = [np.asarray(jax.tree.leaves(state.params)[1]) for state in states]
    assert not np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[1], kernels[2])


def test_epochs_in_steps():
    config = JobConfig(Path("run"), (), "", "", 9, eval=EvalConfig(every=None), checkpoint=CheckpointConfig(every=3))
    resolved = per_epoch(config, 7)
    assert (resolved.eval.every, resolved.checkpoint.every) == (7, 3)
