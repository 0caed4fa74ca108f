"""The only training loop, and the options that every job shares.

Its order, which checkpoints and restarts rely on:

1. restore the newest checkpoint, or make a fresh state;
2. for each step: evaluate and save *the state before the step*, then take the batch (so that a checkpoint's data
   position is that of the next batch), dispatch the update, and only then read the metrics of the update before it
   (so that the host never waits for the device while there is work to hand out);
3. after the last update: evaluate and save once more.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from train.checkpoint import Checkpoints
from train.data.batches import iterate
from train.errors import InputError
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from train.report import Report
from train.sharding import MeshConfig, put_batch
from train.state import Objective, TrainState, abstract_state, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """When training is reported."""

    every: int = 20
    """Steps between rows of metrics.jsonl."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How and when the model is evaluated."""

    every: int = 500
    """Steps between evaluations; there is always one at the end."""
    data: tuple[str, ...] = ()
    """Held-out data, given like --data; by default a part of --data is held out."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved."""

    every: int = 500
    """Steps between checkpoints; there is always one at the end."""
    keep: int = 2
    """How many of the latest checkpoints stay; the best one stays too."""


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """The options that every job has."""

    run: Path
    """Run folder; the same command continues what it holds."""
    data: tuple[str, ...]
    """Training data; by default the job's embedded data."""
    preset: str
    """Size of the model."""
    steps: int
    """Updates of the whole run."""
    seed: int = 0
    """Everything random follows from it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and optimizer state are float32."""
    accumulate: int = 1
    """Parts that a batch is worked off in, to save memory; the update is the same."""
    scan_layers: bool = False
    """Compile one layer and scan over all: quicker to compile, somewhat slower to run."""
    remat: Literal["none", "full", "dots", "dots_no_batch"] = "none"
    """What the backward pass recomputes to save memory."""
    distributed: bool = False
    """Join the other hosts of a cluster or a TPU slice (jax.distributed.initialize)."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    learning_rates: ClassVar[dict[str, float]] = {}
    """Peak learning rate of each preset, where none is given."""

    def __post_init__(self) -> None:
        if self.optimizer.learning_rate is None:
            optimizer = dataclasses.replace(self.optimizer, learning_rate=self.learning_rates[self.preset])
            object.__setattr__(self, "optimizer", optimizer)
        for option, value in (
            ("--steps", self.steps),
            ("--accumulate", self.accumulate),
            ("--log.every", self.log.every),
            ("--eval.every", self.eval.every),
            ("--checkpoint.every", self.checkpoint.every),
            ("--checkpoint.keep", self.checkpoint.keep),
        ):
            if value < 1:
                raise InputError(f"{option}: {value} cannot be used; give 1 or more")
        make_schedule(self.optimizer, self.steps)  # checks its options


class Task(NamedTuple):
    """What a job hands to the loop.

    Attributes:
        inputs: what `model.init` takes after the key, as ShapeDtypeStructs.
        batches: random access by step; batch k is a pure function of (seed, k).
        evaluate: parameters -> an evaluation row, whose names begin with `eval/`.
        best: the name in that row whose smallest value marks the best checkpoint.
    """

    name: str
    model: nn.Module
    inputs: tuple[Any, ...]
    objective: Objective
    batches: Any
    evaluate: Callable[[Any], dict[str, Any]]
    best: str = "eval/loss"


def open_checkpoints(config: JobConfig, best: str = "eval/loss") -> Checkpoints:
    """The checkpoints of a run."""
    return Checkpoints(config.run / "checkpoints", keep_latest=config.checkpoint.keep, best_metric=best)


def train(task: Task, config: JobConfig, mesh: Mesh) -> tuple[TrainState, dict[str, Any]]:
    """Runs, or goes on with, a run to its last step; returns the final state and its evaluation."""
    schedule = make_schedule(config.optimizer, config.steps)
    shapes = jax.eval_shape(task.model.init, jax.random.key(0), *task.inputs)["params"]
    optimizer = make_optimizer(config.optimizer, config.steps, shapes)
    data = iterate(task.batches)
    with jax.set_mesh(mesh), open_checkpoints(config, task.best) as checkpoints:
        abstract = abstract_state(task.model, task.inputs, optimizer, mesh)
        start = checkpoints.latest_step() or 0
        if start:
            restored, position = checkpoints.restore(start, abstract._asdict())
            state = TrainState(**restored)
            data.set_state(position)
        else:
            state = init_state(task.model, task.inputs, optimizer, abstract, config.seed)
        step_fn = make_train_step(
            task.objective, optimizer, schedule, abstract, seed=config.seed, accumulate=config.accumulate
        )
        with Report(
            config.run, total_steps=config.steps, start_step=start, log_every=config.log.every, job=task.name
        ) as report:
            meter = Meter(report, config.log.every)
            for step in range(start, config.steps + 1):
                last = step == config.steps
                evaluation: dict[str, Any] = {}
                if last or (step and step % config.eval.every == 0):
                    meter.flush()
                    evaluation = task.evaluate(state.params)
                    report.evaluation(step, evaluation)
                if last or (step and step % config.checkpoint.every == 0):
                    meter.flush()
                    checkpoints.save(step, state._asdict(), data.get_state(), evaluation or None)
                if last:
                    break
                meter.start()
                batch = put_batch(next(data), mesh)
                state, metrics = step_fn(state, batch)
                meter.push(step + 1, metrics)
    return state, evaluation


class Meter:
    """Reads the metrics of each update one update late, and counts real tokens and the time that steps take."""

    def __init__(self, report: Report, log_every: int) -> None:
        self._report, self._log_every = report, log_every
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._tokens, self._seconds = 0.0, 0.0
        self._since: float | None = None

    def start(self) -> None:
        """A step begins; the clock runs unless it does already."""
        if self._since is None:
            self._since = time.perf_counter()

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Update `step` was dispatched; reads the one before it."""
        before, self._pending = self._pending, (step, metrics)
        self._read(before)

    def flush(self) -> None:
        """Waits for the last update and stops the clock, for what is no training: evaluation and saving."""
        self._read(self._pending)
        self._pending = None
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def _read(self, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
        if pending is None:
            return
        step, metrics = pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._tokens += values["weight/tokens"]
        if step % self._log_every == 0:
            now = time.perf_counter()
            seconds = self._seconds + (now - self._since if self._since is not None else 0.0)
            row = {name: value for name, value in values.items() if not name.startswith("weight/")}
            self._report.train(step, row | {"tokens_per_second": self._tokens / max(seconds, 1e-9)})
            self._tokens, self._seconds = 0.0, 0.0
            self._since = now if self._since is not None else None
