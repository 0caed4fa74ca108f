"""kill -9, or SIGTERM, and the same command again: the weights of a run that was never stopped, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

STEPS = 24
COMMON = f"--steps {STEPS} --log.every 1 --eval.every 8 --checkpoint.every 4 --optimizer.warmup-steps 4".split()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(80)]
    sentences = [" ".join(rng.choice(words, rng.integers(4, 9))) for _ in range(600)]
    text = "\n\n".join("\n".join(f"{s}." for s in sentences[i : i + 10]) for i in range(0, 600, 10))
    (folder / "text.txt").write_text(text)
    (folder / "pairs.tsv").write_text("".join(f"{s}\t{s.upper()}\n" for s in sentences[:300]))
    return {
        "pretrain": [
            "pretrain", "--data", str(folder / "text.txt"), "--vocab-size", "150", "--batch-size", "8",
            "--max-length", "32", *COMMON,
        ],
        "translate": [
            "translate", "--data", str(folder / "pairs.tsv"), "--vocab-size", "24", "--batch-size", "512",
            "--held-out", "40", "--bleu-sentences", "4", "--average", "2", "--max-length", "64", *COMMON,
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One device unless a test says otherwise, and a compilation cache, so that the second start is quick."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    return {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **cache}


def start(command, folder, environment, devices=1):
    environment = {**environment, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    with folder.with_suffix(".log").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "train", *command, "--run", str(folder)],
            env=environment, stdout=output, stderr=output,
        )  # fmt: skip


def log(folder):
    return folder.with_suffix(".log").read_text()


def finish(command, folder, environment, devices=1):
    process = start(command, folder, environment, devices)
    assert process.wait(timeout=300) == 0, log(folder)


def rows(folder):
    """Rows of metrics.jsonl; a last line that is being written does not count."""
    try:
        lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def losses(folder):
    return {row["step"]: row["loss"] for row in rows(folder) if "loss" in row}


def kill_at(step, command, folder, environment, number=signal.SIGKILL):
    process = start(command, folder, environment)
    deadline = time.monotonic() + 300
    while max(losses(folder), default=0) < step:
        assert process.poll() is None, log(folder)
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == (-number if number == signal.SIGKILL else 128 + number)


@pytest.mark.parametrize(("job", "number"), [("pretrain", signal.SIGTERM), ("translate", signal.SIGKILL)])
def test_killed_and_continued_is_never_stopped(job, number, commands, environment, tmp_path):
    command = commands[job]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(command, whole, environment)
    kill_at(10, command, killed, environment, number)
    assert ("stopped by SIGTERM at step" in log(killed)) == (number == signal.SIGTERM)
    assert max(losses(killed)) < STEPS
    finish(command, killed, environment)
    weights, continued = (
        safetensors.numpy.load_file(folder / "export" / "model.safetensors") for folder in (whole, killed)
    )
    assert weights.keys() == continued.keys()
    for name, tensor in weights.items():
        np.testing.assert_array_equal(continued[name], tensor, err_msg=name)
    assert losses(killed) == losses(whole)
    assert {path.name for path in whole.iterdir()} >= {
        "config.json", "metrics.jsonl", "curves.png", "checkpoints", "export", "tensorboard",
    }  # fmt: skip
    # The same command once more: nothing is left to do, and nothing changes.
    finish(command, whole, environment)
    again = safetensors.numpy.load_file(whole / "export" / "model.safetensors")
    assert all(np.array_equal(again[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("job", ["pretrain", "translate"])
def test_continued_on_another_mesh(job, commands, environment, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    finish(commands[job], one, environment)
    kill_at(10, commands[job], other, environment)
    mesh = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    finish([*commands[job], *mesh], other, environment, devices=8)
    ours, theirs = losses(other), losses(one)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[k] for k in theirs], [*theirs.values()], atol=2e-4, rtol=0)
