"""What a fine-tuned model makes of held-out rows: losses, answers and their scores."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from train.confusion import draw_confusion
from train.data.padded import in_order
from train.sharding import RULES, gather, put_batch
from train.state import Batch, Sums
from train.tasks import Features, TaskObjective
from transformer_jax.checkpoints import write_file


class Evaluation:
    """Losses, answers and scores of parameters on the held-out rows; one compilation for each length."""

    def __init__(
        self,
        objective: TaskObjective,
        rows: list[Any],
        features: Features,
        padding: dict[str, int],
        batch_size: int,
        mesh: Mesh,
    ) -> None:
        self._objective, self._task, self._mesh = objective, objective.task, mesh
        self._rows, self._features = rows, features
        processes = jax.process_index(), jax.process_count()
        self._batches = list(in_order(features.examples, padding, batch_size, *processes))
        self._step = jax.jit(self._one)

    def __call__(self, params: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """(evaluation row, a record for each held-out row)."""
        totals: list[Any] = []
        outputs: list[dict[str, np.ndarray]] = [{}] * len(self._features.examples)
        with jax.set_mesh(self._mesh):
            launched: Iterator[Any] = (
                (members, self._step(params, put_batch(batch, self._mesh))) for members, batch in self._batches
            )
            # A batch is on its way while the one before is read.
            for (members, (sums, out)), _ in itertools.pairwise(itertools.chain(launched, [None])):
                totals.append(sums)
                host = {name: gather(value) for name, value in out.items()}
                for row, member in enumerate(members):
                    outputs[member] = {name: value[row] for name, value in host.items()}
        sums, weights = jax.tree.map(lambda *xs: float(np.sum([np.asarray(x) for x in xs])), *totals)
        losses = {name: sums[name] / max(weights[name], 1.0) for name in self._task.terms}
        config = self._objective.model.config
        answers = self._task.answers(self._rows, self._features, outputs, config)
        each = {f"eval/{name}": loss for name, loss in losses.items()} if len(losses) > 1 else {}
        return {"eval/loss": sum(losses.values()), **each, **self._task.scores(self._rows, answers, config)}, answers

    def write(self, folder: Path, name: str, answers: list[dict[str, Any]]) -> None:
        """Writes `predictions.jsonl` and, where there are classes, `confusion.png`; `name` begins their names."""
        if jax.process_index():
            return
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        write_file(folder / f"{name}predictions.jsonl", lines.encode())
        found = self._task.confusion(self._rows, answers, self._objective.model.config)
        if found is not None:
            names, counts = found
            picture = draw_confusion(counts, names, f"{name}confusion  ·  {folder.name}")
            write_file(folder / f"{name}confusion.png", picture)

    def _one(self, params: Any, batch: Batch) -> tuple[tuple[Sums, Sums], dict[str, jax.Array]]:
        with nn.logical_axis_rules(RULES):
            out = self._objective.apply(params, batch)
            return (self._task.sums(out, batch), self._task.weights(batch)), self._task.outputs(out)


def write_scores(path: Path, seeds: dict[int, dict[str, Any]]) -> list[tuple[str, str]]:
    """Writes the scores of each seed, their mean and standard deviation (of the sample); returns a table of them."""
    columns = {name: [row[name] for row in seeds.values()] for name in next(iter(seeds.values())) if name != "step"}
    content: dict[str, Any] = {"seeds": seeds, "mean": {n: float(np.mean(column)) for n, column in columns.items()}}
    texts = {name: f"{mean:.4f}" for name, mean in content["mean"].items()}
    if len(seeds) > 1:
        content["standard_deviation"] = {n: float(np.std(column, ddof=1)) for n, column in columns.items()}
        for name, spread in content["standard_deviation"].items():
            texts[name] += f" +- {spread:.4f} over {len(seeds)} seeds"
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())
    return [(name.removeprefix("eval/"), text) for name, text in texts.items()]
