"""What shortens the plateau of pretraining, where the loss stays at that of word frequencies: one change at a time.

    python benchmarks/plateau.py --data $DATA/books/*.txt.gz --out results.json

Each case is `python -m train pretrain` with its defaults, run to its end, but for what the case changes: how the table
of positions begins, and dropout. Each has a process of its own and the same data, seed and steps; its figures are the
evaluations on held-out text, which are drawn beside `--out` too. `--jobs 2` runs two at once, each on a core of its
own: steps are counted, not seconds.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from record import about

HERE = Path(__file__).parents[1]

# The table begins as a normal of the words' deviation (None, as BERT's), or as sinusoids of so many times that.
WORKER = """
import json, sys
from bert_jax import BertConfig
from train import pretrain
from train.__main__ import run

times, dropout = json.loads(sys.argv[1])
preset, words = BertConfig.preset, BertConfig.initializer_range
pretrain.POSITION_RANGE = None if times is None else words * times
rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
BertConfig.preset = lambda name, **fields: preset(name, **{**rates, **fields})
sys.exit(run(sys.argv[2:]))
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """Positions that begin as sinusoids of `times` the words' deviation, None at random; and dropout."""

    times: float | None
    dropout: float


CASES = (
    Case(None, 0.1),
    Case(None, 0.0),
    Case(1, 0.1),
    Case(1, 0.0),
    Case(4, 0.1),
    Case(4, 0.0),
    Case(10, 0.1),
    Case(10, 0.0),
)


def measure(case: Case, core: int | None, options: list[str]) -> dict[str, Any]:
    """The evaluations of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", WORKER, json.dumps(dataclasses.astuple(case)), "pretrain"]
        command += [*options, "--run", f"{folder}/run"]
        pinned = ["taskset", "-c", str(core)] if core is not None else []
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        subprocess.run([*pinned, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval/mlm_loss" in row]
    result = {
        **dataclasses.asdict(case),
        "unigram_entropy": evaluations[0]["eval/unigram_loss"],
        "mlm_loss": {row["step"]: round(row["eval/mlm_loss"], 4) for row in evaluations},
        "nsp_accuracy": {row["step"]: round(row["eval/nsp_accuracy"], 4) for row in evaluations},
    }
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shared = ["--data", *options.data, "--preset", options.preset, "--steps", str(options.steps)]
    shared += ["--eval.every", "100", "--checkpoint.every", str(options.steps)]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        # Equal cases beside each other take about equally long, so that a core is free when its next one begins.
        cores = [index % options.jobs if options.jobs > 1 else None for index in range(len(CASES))]
        results = list(pool.map(measure, CASES, cores, [shared] * len(CASES)))
    record = {
        **about("jax"),
        "cases": results,
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        draw(record, options.out.with_suffix(".png"))


def draw(record: dict[str, Any], path: Path) -> None:
    """The curves of all cases: a colour for how positions begin, dashes where dropout is off."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    kinds = list(dict.fromkeys(case["times"] for case in record["cases"]))
    for case in record["cases"]:
        begin = "random" if case["times"] is None else f"sinusoids x {case['times']:g}"
        steps = [int(step) for step in case["mlm_loss"]]
        style = "-" if case["dropout"] else "--"
        label = f"{begin}, dropout {case['dropout']:g}"
        axes.plot(steps, list(case["mlm_loss"].values()), style, color=f"C{kinds.index(case['times'])}", label=label)
    entropy = record["cases"][0]["unigram_entropy"]
    axes.axhline(entropy, color="grey", linewidth=1)
    axes.annotate("unigram entropy", (steps[-1], entropy), ha="right", va="bottom", color="grey")
    axes.set(xlabel="step", ylabel="held-out masked-LM loss, nat", xlim=(0, steps[-1]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
