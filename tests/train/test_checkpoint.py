"""Checkpoints on 8, 1 and 2x4 devices, with donation, after kills, on full disks, with the latest and the best kept."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train import seals, storage
from train.checkpoint import Checkpoints
from train.errors import InputError, StorageError
from train.optimizer import OptimizerConfig, make_optimizer

ROOT = Path(__file__).parents[2]


def mesh(*shape, devices=8):
    names = ("data", "fsdp")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=jax.devices()[:devices])


def make_state(name="adamw", seed=0):
    rng = np.random.default_rng(seed)
    kernels = {
        "kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(8,)), jnp.bfloat16),
    }
    params = {"encoder": {"layer_0": {"up": kernels}}, "pooler": jax.tree.map(lambda x: x + 1, kernels)}
    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=1e-4), 10, params)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(0.5, x.dtype), optimizer.init(params))
    return {"step": jnp.asarray(seed, jnp.int32), "params": params, "opt_state": opt_state}


def spec(leaf, axes):
    return P(axes) if leaf.ndim and leaf.shape[0] % 8 == 0 else P()


def place(state, where, axes="data"):
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(where, spec(x, axes))), state)


def abstract(state, where, axes="data"):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(where, spec(x, axes))), state
    )


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "muon"])
def test_eight_devices_to_one_to_two_by_four_and_back(tmp_path, name):
    state = make_state(name)
    eight, one, grid = mesh(8), mesh(1, devices=1), mesh(2, 4)
    data = {"epoch": 1, "position": [3, None, "x"], "deep": {"a": True}}
    current = place(state, eight)
    for step, (target, target_axes) in enumerate([(one, "data"), (grid, ("data", "fsdp")), (eight, "data")]):
        with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
            checkpoints.save(step, current, data)
        with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
            wanted = abstract(state, target, target_axes)
            current, restored = checkpoints.restore(checkpoints.newest(), wanted)
        assert_same(current, state)
        assert restored == data
        for got, want in zip(jax.tree.leaves(current), jax.tree.leaves(wanted), strict=True):
            assert got.sharding == want.sharding


def test_params_come_back_as_numpy_without_the_rest(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(4, place(state, mesh(8)), {})
        params = checkpoints.restore_params(4)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    assert_same(params, state["params"])


def test_latest_and_best_are_kept_across_restarts(tmp_path):
    state = make_state()
    losses = [5.0, 1.0, None, 3.0, float("nan"), 2.0]

    def folders():
        return sorted(int(p.name) for p in tmp_path.iterdir())

    with Checkpoints(tmp_path, keep_latest=2, best_metric="eval/loss") as checkpoints:
        assert checkpoints.newest() is None and checkpoints.best_step() is None and checkpoints.steps() == []
        for step, loss in enumerate(losses[:4]):
            checkpoints.save(step, state, {}, None if loss is None else {"eval/loss": loss, "eval/other": 0.0})
        assert checkpoints.steps() == [1, 2, 3]
    assert folders() == [1, 2, 3]
    with Checkpoints(tmp_path, keep_latest=2, best_metric="eval/loss") as checkpoints:
        assert checkpoints.best_step() == 1
        for step, loss in enumerate(losses[4:], start=4):
            checkpoints.save(step, state, {}, {"eval/loss": np.float32(loss)})
        assert checkpoints.steps() == [1, 4, 5] and checkpoints.newest() == 5
    assert folders() == [1, 4, 5]
    with Checkpoints(tmp_path, keep_latest=1, best_metric="eval/loss", best_mode="max") as checkpoints:
        assert checkpoints.best_step() == 5
        checkpoints.save(6, state, {}, {"eval/loss": 2.0})
        assert checkpoints.best_step() == 5  # what is only as good is not better
        checkpoints.save(7, state, {}, {"eval/loss": 2.5})
    assert folders() == [7]


def test_saving_a_saved_step_again_keeps_the_first(tmp_path):
    first, second = make_state(seed=0), make_state(seed=1)
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(3, first, {"n": 0})
        checkpoints.save(3, second, {"n": 1})
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(3, second, {"n": 2})
        state, data = checkpoints.restore(3, abstract(first, mesh(1, devices=1)))
    assert_same(state, first)
    assert data == {"n": 0}


def test_donated_arrays_and_a_moving_position_are_saved_as_they_were(tmp_path):
    eight = mesh(8)
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    make = jax.jit(
        lambda: {"big": jnp.arange(800_000.0), "small": jnp.arange(8.0), "whole": jnp.arange(30_000.0)},
        out_shardings={"big": NamedSharding(eight, P("data")), "small": NamedSharding(eight, P("data")), "whole": None},
    )
    wanted = jax.tree.map(np.asarray, make())
    position = {"n": [0]}
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        for step in range(3):
            state = {"params": make()}
            checkpoints.save(step, state, position)
            position["n"][0] += 1
            state = advance(advance(state))
        for step in range(3):
            restored, data = checkpoints.restore(step, abstract({"params": wanted}, eight))
            assert_same(restored["params"], wanted)
            assert data == {"n": [step]}


def test_a_half_written_checkpoint_is_ignored_and_removed(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep_latest=5) as checkpoints:
        checkpoints.save(1, state, {"n": 1})
    torn = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", torn)
    (torn / "commit_success.txt").unlink(missing_ok=True)
    (torn / "state" / "_METADATA").unlink()
    half_deleted = tmp_path / "0.orbax-checkpoint-tmp-deleted"
    shutil.copytree(torn, half_deleted)
    with Checkpoints(tmp_path, keep_latest=5) as checkpoints:
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state, {"n": 2})
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(2, abstract(state, mesh(8)))[1] == {"n": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_kill_while_deleting_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    state = make_state()
    with monkeypatch.context() as patch, Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        patch.setattr(shutil, "rmtree", lambda folder, ignore_errors: None)
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
    assert len(list(tmp_path.iterdir())) == 2
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.steps() == [2]
        checkpoints.save(3, state, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_a_kill_while_saving_loses_only_that_save(tmp_path):
    program = """
        import os, signal, sys, threading, time
        import jax.numpy as jnp
        from train.checkpoint import Checkpoints
        checkpoints = Checkpoints(sys.argv[1], keep_latest=1)
        checkpoints.save(1, {"params": {"kernel": jnp.ones(8)}}, {"n": 1})
        checkpoints.wait()
        checkpoints.save(2, {"params": {"kernel": jnp.ones(40_000_000)}}, {"n": 2})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL and done.stderr == "" and done.stdout == ""
    assert any("tmp" in p.name for p in tmp_path.iterdir())
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        assert checkpoints.newest() == 1
        small = {"params": {"kernel": jnp.zeros(8)}}
        state, data = checkpoints.restore(1, abstract(small, mesh(8)))
        assert data == {"n": 1} and (state["params"]["kernel"] == 1).all()
        checkpoints.save(2, small, {"n": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


def test_another_structure_is_one_clear_line(tmp_path):
    state = make_state()
    where = mesh(1, devices=1)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(2, state, {})
        lean = {**state, "params": {"pooler": state["params"]["pooler"]}}
        with pytest.raises(InputError, match=r"/2: holds params/encoder/layer_0/up/bias and 1 more"):
            checkpoints.restore(2, abstract(lean, where))
        rich = {**state, "params": {**state["params"], "head": {"bias": jnp.zeros(3)}}}
        with pytest.raises(InputError, match=r"/2: lacks params/head/bias, unlike"):
            checkpoints.restore(2, abstract(rich, where))
        wide = jax.tree.map(lambda x: x, state)
        wide["params"]["pooler"]["kernel"] = jnp.zeros((16, 9))
        with pytest.raises(InputError, match=r"pooler/kernel is float32\[16, 8\], this run needs float32\[16, 9\]"):
            checkpoints.restore(2, abstract(wide, where))
        for call in (lambda: checkpoints.restore(7, state), lambda: checkpoints.restore_params(7)):
            with pytest.raises(InputError, match="no checkpoint of step 7; there are: 2"):
                call()


def test_a_metric_nobody_measures_and_nothing_to_keep(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1, best_metric="eval/f1") as checkpoints:
        with pytest.raises(InputError, match="'eval/f1' is not among the metrics of the evaluation: eval/loss"):
            checkpoints.save(1, make_state(), {}, {"eval/loss": 1.0})
        assert checkpoints.steps() == []
    with pytest.raises(InputError, match="checkpoints to keep: 0"):
        Checkpoints(tmp_path, keep_latest=0)


def test_a_position_that_json_cannot_hold_fails_at_once(tmp_path):
    with Checkpoints(tmp_path / "run", keep_latest=1) as checkpoints:
        checkpoints.save(1, make_state(), {})
        checkpoints.wait()
        with pytest.raises(TypeError):
            checkpoints.save(2, make_state(), {"n": object()})
        assert checkpoints.steps() == [1]


def test_files_hold_arrays_and_json_only(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(1, make_state(), {"n": 1})
    assert json.loads((tmp_path / "1" / "data" / "data.json").read_text()) == {"n": 1}
    assert not any(b"pickle" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_an_interim_checkpoint_pushes_no_regular_one_out_and_goes_when_there_is_a_newer(tmp_path):
    state = make_state()

    def folders():
        return sorted(int(p.name) for p in tmp_path.iterdir())

    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state, {})
        checkpoints.save(23, state, {"n": 23}, interim=True)
        assert checkpoints.steps() == [10, 20, 23] and checkpoints.regular_steps() == [10, 20]
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.newest() == 23 and checkpoints.regular_steps() == [10, 20]
        assert checkpoints.restore(23, abstract(state, mesh(8)))[1] == {"n": 23}
        checkpoints.save(23, state, {}, interim=True)  # there already
        checkpoints.save(27, state, {}, interim=True)
        assert checkpoints.steps() == [10, 20, 27] and checkpoints.regular_steps() == [10, 20]
        checkpoints.save(30, state, {})
    assert folders() == [20, 30]


def test_an_interim_checkpoint_becomes_a_regular_one_when_its_step_is_due(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep_latest=2, best_metric="eval/loss") as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state, {}, {"eval/loss": 2.0})
        checkpoints.save(23, state, {"n": 23}, interim=True)
    with Checkpoints(tmp_path, keep_latest=2, best_metric="eval/loss") as checkpoints:
        checkpoints.save(23, state, {}, {"eval/loss": 1.0})
        assert checkpoints.regular_steps() == [20, 23] and checkpoints.best_step() == 23
        checkpoints.save(23, state, {}, interim=True)  # a regular one stays one
    with Checkpoints(tmp_path, keep_latest=2, best_metric="eval/loss") as checkpoints:
        assert checkpoints.regular_steps() == [20, 23] and checkpoints.best_step() == 23
        assert checkpoints.restore(23, abstract(state, mesh(8)))[1] == {"n": 23}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["20", "23"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    folder = tmp_path / "checkpoints"
    state = make_state()
    with pytest.raises(StorageError) as caught, Checkpoints(folder, keep_latest=1) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        folder.rename(tmp_path / "elsewhere")
        folder.write_text("in the way")
        checkpoints.save(2, state, {})
    assert str(caught.value) == (
        f"the checkpoint of step 2 could not be written to {folder} (Not a directory); there is no earlier one; "
        "free space or mend the folder, and give the same command again"
    )
    with pytest.raises(InputError, match=rf"{folder} cannot be used: File exists"):
        Checkpoints(folder, keep_latest=1)


def test_what_ended_the_run_comes_before_what_could_not_be_saved(tmp_path, monkeypatch):
    def full(folder, seal):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lines = []
    monkeypatch.setattr(seals, "write", full)
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path, keep_latest=1, say=lines.append) as checkpoints:
        checkpoints.save(1, make_state(), {})
        raise ZeroDivisionError
    assert len(lines) == 1 and "step 1 could not be written" in lines[0] and "(No space left on device)" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_of_the_disk_stays_what_it_is(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        monkeypatch.setattr(seals, "hash_files", lambda folder: 1 / 0)
        checkpoints.save(1, make_state(), {})
        with pytest.raises(ZeroDivisionError):
            checkpoints.wait()
        assert checkpoints.steps() == []
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
    import resource, sys, time
    import jax, jax.numpy as jnp
    from train.checkpoint import Checkpoints
    from train.errors import StorageError
    folder, size, how, limit = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    state = lambda n: {"params": {f"k{i}": jax.random.normal(jax.random.key(i), (n,)) for i in range(8)}}
    try:
        with Checkpoints(folder, keep_latest=1) as checkpoints:
            checkpoints.save(1, state(8), {"n": 1})
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a write beyond fails; nothing need be mounted
            checkpoints.save(2, state(size), {"n": 2})
            since = time.monotonic()
            while how == "check":
                checkpoints.check()
                assert time.monotonic() - since < 30
                time.sleep(0.01)
            if how == "save":
                checkpoints.save(3, state(8), {})
    except StorageError as error:
        print(error)
"""


@pytest.mark.parametrize(("how", "limit"), [("check", 20_000), ("save", 0), ("close", 600)])
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path, how, limit):
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path), "100000", how, str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == (
        f"the checkpoint of step 2 could not be written to {tmp_path} (File too large); the last good one is that of "
        "step 1; free space or mend the folder, and give the same command again\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        assert checkpoints.newest() == 1


def test_what_tensorstore_says_after_a_failure_is_dropped_and_nothing_else(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    storage._silence()
    storage._silence()
    late = SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed"))
    others = [
        SimpleNamespace(object=None, exc_value=RuntimeError("another")),
        SimpleNamespace(object=print, exc_value=RuntimeError("Event loop is closed")),
    ]
    for event in (late, *others):
        sys.unraisablehook(event)
    assert heard == others
