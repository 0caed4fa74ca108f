"""Two checkouts of this project side by side: the training step, and the time until a run trains.

    python benchmarks/checkouts.py OTHER_CHECKOUT [--rounds 40] [--starts 6] [--out results.json]

Compares the checkout that holds this file ("here") with another one ("there"), in one run, taking turns: each has a
process of its own that makes the default pretraining's state and batches and updates on demand; the processes are told
to update a few times each, one after the other, so that what else the machine does meets both. Reported are medians
over the rounds, and the median of the ratio within a round. A start is the whole command from its beginning to its
first training row: fresh, and going on from a checkpoint; each checkout has its own warm compilation cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import about

HERE = Path(__file__).parents[1]
UPDATES = 4

WORKER = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from bert_jax import BertConfig, BertForPreTraining, BertTokenizer
from train.data.batches import ExampleBatches
from train.data.pretraining import SentencePairs, tokenize_corpus
from train.data.python_docs import python_documents
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from train.sharding import MeshConfig, make_mesh, put_batch
from train.state import abstract_state, init_state, make_train_step
try:
    from train.objectives import PretrainObjective
except ImportError:
    from train.pretrain import PretrainObjective

documents, _ = python_documents()
tokenizer = BertTokenizer.train((s for d in documents for s in d), 2048)
corpus = tokenize_corpus(documents, tokenizer.backend)
ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
examples = SentencePairs(corpus, max_length=64, **ids, seed=0)
batches = ExampleBatches(examples, batch_size=64, seed=0, steps=10**6)
model = BertForPreTraining(BertConfig.tiny(vocab_size=tokenizer.vocab_size))
options = OptimizerConfig(name="muon", schedule="cosine", warmup_steps=100, learning_rate=5e-3)
inputs = (jax.ShapeDtypeStruct((64, 64), jnp.int32),)
shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
optimizer = make_optimizer(options, 1600, shapes)
mesh = make_mesh(MeshConfig())
with jax.set_mesh(mesh):
    abstract = abstract_state(model, inputs, optimizer, mesh)
    state = init_state(model, inputs, optimizer, abstract, 0)
    objective = PretrainObjective(model, tokenizer, 64, False)
    parts = (objective, optimizer, make_schedule(options, 1600), abstract)
    try:
        step = make_train_step(*parts, seed=0)
    except TypeError:
        update = make_train_step(*parts)
        step = lambda state, batch: update(state, batch, 0)
    made = [put_batch(batches[k], mesh) for k in range(8)]
    done = 0
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            state, metrics = step(state, made[done % 8])
            done += 1
        loss = float(jax.block_until_ready(metrics)["loss"])
        print((time.perf_counter() - begin) / int(line), loss, flush=True)
"""


def environment(checkout: Path, cache: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}


def step_times(checkouts: dict[str, Path], caches: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Seconds an update of each checkout, in turns; how far their losses differ."""
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-c", WORKER], cwd=checkout, env=environment(checkout, caches[name]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name, checkout in checkouts.items()
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    losses: dict[str, list[float]] = {name: [] for name in checkouts}
    for number in range(rounds + 2):
        names = list(checkouts) if number % 2 else list(checkouts)[::-1]
        for name in names:
            worker = workers[name]
            assert worker.stdin and worker.stdout
            worker.stdin.write(f"{UPDATES}\n")
            worker.stdin.flush()
            took, loss = map(float, worker.stdout.readline().split())
            losses[name].append(loss)
            if number >= 2:  # compilation, and what follows it
                seconds[name].append(took)
        print(f"\rround {max(0, number - 1)}/{rounds}", end="", file=sys.stderr)
    for worker in workers.values():
        worker.communicate()
    largest = max(abs(a - b) / abs(b) for a, b in zip(losses["here"], losses["there"], strict=True))
    return {"seconds": seconds, "largest_relative_difference_of_losses": largest, **summary(seconds)}


def start_times(checkouts: dict[str, Path], caches: dict[str, Path], folder: Path, starts: int) -> dict[str, Any]:
    """Seconds from the command to its first row of training, of a fresh run and of one that goes on."""
    seconds: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in checkouts} for kind in ("fresh", "going on")
    }
    for number in range(starts + 1):
        for name in list(checkouts) if number % 2 else list(checkouts)[::-1]:
            run = folder / f"{name}-{number}"
            for kind in seconds:
                took = until_first_row(checkouts[name], caches[name], run)
                if number:  # the first fills the cache
                    seconds[kind][name].append(took)
        print(f"\rstart {number}/{starts}  ", end="", file=sys.stderr)
    return {kind: {"seconds": times, **summary(times)} for kind, times in seconds.items()}


def until_first_row(checkout: Path, cache: Path, run: Path) -> float:
    command = [
        sys.executable,
        "-u",
        "-m",
        "train",
        "pretrain",
        "--run",
        str(run),
        "--log.every",
        "1",
        "--checkpoint.every",
        "5",
    ]
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=checkout, env=environment(checkout, cache), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        took, rows = 0.0, 0
        for line in process.stdout:
            if line.startswith("step "):
                rows += 1
                took = took or time.perf_counter() - begin
            if rows == 9:  # behind the checkpoint of step 5, which is written in the background
                break
        process.kill()
    return took


def summary(seconds: dict[str, list[float]]) -> dict[str, float]:
    ratios = [here / there for here, there in zip(seconds["here"], seconds["there"], strict=True)]
    medians = {f"median_{name}": statistics.median(times) for name, times in seconds.items()}
    return {
        **medians,
        "median_ratio": statistics.median(ratios),
        "ratio_of_least": min(seconds["here"]) / min(seconds["there"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    checkouts = {"here": HERE, "there": options.other.resolve()}
    with tempfile.TemporaryDirectory() as temporary:
        caches = {name: Path(temporary) / f"cache-{name}" for name in checkouts}
        result = {
            **about("jax"),
            "commits": {name: commit(path) for name, path in checkouts.items()},
            "update": step_times(checkouts, caches, options.rounds),
            "start": start_times(checkouts, caches, Path(temporary), options.starts),
        }
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    for title, row in (("update", result["update"]), *result["start"].items()):
        print(
            f"\n{title}: here {row['median_here']:.4f} s, there {row['median_there']:.4f} s, "
            f"ratio in a round {row['median_ratio']:.4f}, of the least {row['ratio_of_least']:.4f}"
        )
    print(f"losses differ by at most {result['update']['largest_relative_difference_of_losses']:.1e} of themselves")


def commit(checkout: Path) -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
