"""Averages of parameters: the moving one that an optimizer keeps, and that of a translation's checkpoints."""

import dataclasses
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.test_loop import STEPS, Batches, assert_same, go
from train.errors import InputError
from train.loop import CheckpointConfig, EvalConfig, JobConfig, open_checkpoints
from train.optimizer import OptimizerConfig, make_optimizer
from train.options import check_options
from train.sharding import MeshConfig, make_mesh
from train.signals import Interrupted
from train.state import abstract_state
from train.translate import TranslateConfig, average_checkpoints, judge_of
from transformer_jax import Transformer, TransformerConfig

OFTEN = {"eval": EvalConfig(every=1), "checkpoint": CheckpointConfig(every=2, keep=9)}
SKIPPED = 5  # the batch whose update is not made
DECAY = 0.7


def with_decay(decay):
    return OptimizerConfig(learning_rate=0.1, schedule="inverse-square-root", warmup_steps=2, ema=decay)


class Evaluated:
    """Keeps what it is given to evaluate."""

    def __init__(self):
        self.params = []

    def __call__(self, params):
        self.params.append(jax.tree.map(np.asarray, params))
        return {"eval/loss": 1.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The parameters after each step, what a run that averages evaluated there, its end and its folder."""
    folder = tmp_path_factory.mktemp("average")
    seen, states = [], []
    for decay in (None, DECAY):
        evaluated = Evaluated()
        spoiled = Batches({SKIPPED: math.nan})
        options = {"of_task": {"evaluate": evaluated}, "optimizer": with_decay(decay)}
        often = OFTEN if decay else {**OFTEN, "checkpoint": CheckpointConfig(every=99)}
        states.append(go(folder / str(decay), spoiled, **options, **often))
        seen.append(evaluated.params)
    assert_same(states[0].params, states[1].params)  # what is trained does not depend on it
    return *seen, states[1], folder / str(DECAY)


def test_what_is_evaluated_is_the_mean_of_all_states_weighted_by_their_age(runs):
    params, averages, end, _ = runs
    assert len(params) == len(averages) == STEPS
    made = [step for step in range(1, STEPS + 1) if step - 1 != SKIPPED]
    for step in range(1, STEPS + 1):
        before = [n for n in made if n <= step]
        weights = DECAY ** np.arange(len(before))[::-1]
        for path, average in jax.tree_util.tree_leaves_with_path(averages[step - 1]):
            leaves = [dict(jax.tree_util.tree_leaves_with_path(params[n - 1]))[path].astype(np.float64) for n in before]
            # A float32 recurrence of a dozen steps over numbers of about 1.
            np.testing.assert_allclose(average, np.average(leaves, axis=0, weights=weights), atol=3e-6)
    assert_same(averages[SKIPPED - 1], averages[SKIPPED])
    assert_same(end.evaluated, averages[-1])
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (end.params, end.evaluated)), strict=True))


def test_checkpoints_give_the_average_to_who_asks_for_parameters(runs):
    _, averages, _, folder = runs
    with open_checkpoints(JobConfig(folder, (), "", "", STEPS, checkpoint=CheckpointConfig(keep=9))) as checkpoints:
        for step in (2, 8, STEPS):
            assert_same(checkpoints.restore_params(step), averages[step - 1])


def test_a_restart_changes_nothing(runs, tmp_path):
    sender = Batches({SKIPPED: math.nan}, at=7, act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        go(tmp_path / "run", sender, optimizer=with_decay(DECAY), **OFTEN)
    end = go(tmp_path / "run", Batches({SKIPPED: math.nan}), optimizer=with_decay(DECAY), **OFTEN)
    assert_same(end, runs[2])
    with pytest.raises(InputError, match="--optimizer.ema is 0.7 there and None here"):
        go(tmp_path / "run", optimizer=with_decay(None), **OFTEN)


def test_it_begins_with_the_parameters_that_are_given_and_lies_as_they_do():
    config = dataclasses.replace(with_decay(0.9), name="muon")
    model = Transformer(TransformerConfig.tiny(64, encoder_layers=1, decoder_layers=1))
    ids = (jax.ShapeDtypeStruct((8, 4), jnp.int32),) * 2
    shapes = jax.eval_shape(model.init, jax.random.key(0), *ids)["params"]
    state = abstract_state(model, ids, make_optimizer(config, 9, shapes), make_mesh(MeshConfig(data=1, fsdp=8)))
    of_params, of_average = (jax.tree.map(lambda x: x.sharding, tree) for tree in (state.params, state.evaluated))
    assert of_params == of_average and any(not s.is_fully_replicated for s in jax.tree.leaves(of_params))
    params = {"layer_0": {"kernel": jnp.ones((2, 2))}}
    assert_same(make_optimizer(config, 9, params).init(params).average, params)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, math.nan])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(InputError, match=r"--optimizer.ema .*"):
        check_options(with_decay(decay), "--optimizer.")


def test_a_decay_that_float32_cannot_tell_from_1_gives_the_plain_mean():
    params = {"kernel": jnp.zeros(1)}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, ema=1 - 1e-9), 1000, params)
    state, seen = optimizer.init(params), []
    for gradient in (1.0, 2.0, -6.0):
        updates, state = optimizer.update({"kernel": jnp.full(1, gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params["kernel"])
    np.testing.assert_allclose(state.average["kernel"], np.mean(seen, axis=0), rtol=1e-6)  # float32


def save(folder, scores):
    """Checkpoints of a run, `scores[i]` of step i + 1, whose parameter is the step's square."""
    patience = EvalConfig(every=1, patience=2)
    config = TranslateConfig(folder, steps=99, eval=patience, checkpoint=CheckpointConfig(every=1, keep=3), average=3)
    for judge in ("nll_loss", "bleu"):
        one = dataclasses.replace(config, run=folder / judge, best=judge)
        with open_checkpoints(one, *judge_of(one)) as checkpoints:
            for step, score in enumerate(scores, start=1):
                metrics = {"eval/nll_loss": -score, "eval/bleu": score, "eval/smoothed_loss": 1.0}
                checkpoints.save(step, {"params": {"x": np.full(2, step**2, np.float32)}}, {}, metrics)
        yield one


@pytest.mark.parametrize(
    ("scores", "averaged"),
    [
        ((1, 2, 3, 9, 5, 9, 7, 6), [2, 3, 4]),  # as good is not better
        ((1, 2, 3, math.nan, 5, 0, 1), [3, 4, 5]),
        ((7, 6, 5, 4), [1]),
        ((1, 2, 3, 4), [2, 3, 4]),
    ],
)
def test_what_patience_ends_averages_up_to_the_best(scores, averaged, tmp_path):
    for config in save(tmp_path, scores):
        last = len(scores)
        steps, params = average_checkpoints(config, last)
        assert steps == averaged
        np.testing.assert_array_equal(params["x"], np.full(2, np.mean(np.square(averaged)), np.float32))
        # Without it nothing is chosen by held-out pairs.
        steps, _ = average_checkpoints(dataclasses.replace(config, eval=EvalConfig(every=1)), last)
        assert steps == [last - 2, last - 1, last]
