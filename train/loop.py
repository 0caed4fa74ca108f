"""The only training loop, and the options that every job shares.

Its order, which checkpoints and restarts rely on:

1. restore the newest checkpoint, or make a fresh state;
2. for each step: evaluate and save *the state before the step*, then take the batch (so that a checkpoint's data
   position is that of the next batch), dispatch the update, and only then read the metrics of the update before it
   (so that the host never waits for the device while there is work to hand out);
3. after the last update: evaluate and save once more.

A signal ends the loop between two steps, with a checkpoint of its own; where none is due it is `interim`, and changes
nothing of what the run keeps and averages in the end. A state that is not sound is not saved: its checkpoint is owed
until one is.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from train.checkpoint import Checkpoints
from train.data.batches import iterate
from train.errors import Diverged
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from train.options import LARGEST, Count, Range, Seed
from train.report import Report
from train.sharding import MeshConfig, put_batch
from train.signals import Interrupted, Stop, stopping
from train.state import Objective, TrainState, abstract_state, all_finite, init_state, make_train_step
from train.terminal import say

Every = Annotated[int | None, Range(1, LARGEST)]


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """When training is reported."""

    every: Count = 20
    """Steps between rows of metrics.jsonl."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How and when the model is evaluated."""

    every: Every = 500
    """Steps between evaluations; None: once in an epoch. There is always one at the end."""
    patience: Annotated[int | None, Range(1, LARGEST)] = None
    """Evaluations in a row without a better one (one as good is none) after which the run ends; by default it goes to
    its last step."""
    data: tuple[str, ...] = ()
    """Held-out data, given like --data; by default a part of --data is held out."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved."""

    every: Every = 500
    """Steps between checkpoints; None: once in an epoch. There is always one at the end."""
    keep: Count = 2
    """How many of the latest checkpoints stay; the best one stays too, with --eval.patience as many up to it."""


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """The options that every job has."""

    run: Path
    """Run folder; the same command continues what it holds."""
    data: tuple[str, ...]
    """Training data; by default the job's embedded data."""
    preset: str
    """Size of the model."""
    model: str
    """Folder or hub name of a model to start from, with its vocabulary, such as the export of a run."""
    steps: Count
    """Updates of the whole run."""
    seed: Seed = 0
    """Everything random follows from it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and optimizer state are float32."""
    accumulate: Count = 1
    """Parts that a batch is worked off in, to save memory; the update is the same."""
    scan_layers: bool = False
    """Compile one layer and scan over all: quicker to compile, somewhat slower to run."""
    remat: Literal["none", "full", "dots", "dots_no_batch"] = "none"
    """What the backward pass recomputes to save memory."""
    max_bad_steps: Count = 10
    """Steps in a row whose loss or gradient is not finite, and whose update is skipped, before the run stops."""
    distributed: bool = False
    """Join the other hosts of a cluster or a TPU slice (jax.distributed.initialize)."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    learning_rates: ClassVar[dict[str, float]] = {}
    """Peak learning rate of each preset, where none is given."""


Config = TypeVar("Config", bound=JobConfig)


def with_learning_rate(config: Config, preset: str) -> Config:
    """The options with the learning rate of the preset, where none is given.

    Raises:
        InputError: the options of the schedule do not fit each other.
    """
    if config.optimizer.learning_rate is None:
        optimizer = dataclasses.replace(config.optimizer, learning_rate=config.learning_rates[preset])
        config = dataclasses.replace(config, optimizer=optimizer)
    make_schedule(config.optimizer, config.steps)
    return config


def nearest_preset(width: int, widths: Mapping[str, int]) -> str:
    """The preset whose width is nearest to that of a model that is gone on from: its learning rate is the default."""
    return min(widths, key=lambda name: abs(widths[name] - width))


def per_epoch(config: Config, steps: int) -> Config:
    """The options with `steps`, those of an epoch, where evaluations or checkpoints are counted in epochs."""
    return dataclasses.replace(
        config,
        eval=dataclasses.replace(config.eval, every=config.eval.every or steps),
        checkpoint=dataclasses.replace(config.checkpoint, every=config.checkpoint.every or steps),
    )


class Task(NamedTuple):
    """What a job hands to the loop.

    Attributes:
        inputs: what `model.init` takes after the key, as ShapeDtypeStructs.
        batches: random access by step; batch k is a pure function of (seed, k).
        evaluate: parameters -> an evaluation row, whose names begin with `eval/`.
        best: the name in that row whose best value marks the best checkpoint.
        params: what a fresh run starts from; None for a random initialisation.
        best_mode: whether the least or the greatest value is the best.
        keeps_best: whether the job ends with the best checkpoint, not the last: every state that is evaluated is
            saved then.
        keeps_up_to_best: whether the job ends with those up to the best one: as many are kept as of the latest.
    """

    name: str
    model: nn.Module
    inputs: tuple[Any, ...]
    objective: Objective
    batches: Any
    evaluate: Callable[[Any], dict[str, Any]]
    best: str = "eval/loss"
    params: Any = None
    best_mode: Literal["min", "max"] = "min"
    keeps_best: bool = False
    keeps_up_to_best: bool = False


class Program(NamedTuple):
    """What is compiled for a task: runs that differ in their seed and its consequences share it."""

    abstract: TrainState
    optimizer: optax.GradientTransformation
    step: Callable[[TrainState, dict[str, jax.Array], int], tuple[TrainState, dict[str, jax.Array]]]


def make_program(task: Task, config: JobConfig, mesh: Mesh) -> Program:
    """The state's shapes and shardings, the optimizer and the update; nothing is computed yet."""
    schedule = make_schedule(config.optimizer, config.steps)
    shapes = jax.eval_shape(task.model.init, jax.random.key(0), *task.inputs)["params"]
    optimizer = make_optimizer(config.optimizer, config.steps, shapes)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task.model, task.inputs, optimizer, mesh)
    step = make_train_step(task.objective, optimizer, schedule, abstract, accumulate=config.accumulate)
    return Program(abstract, optimizer, step)


def open_checkpoints(
    config: JobConfig, best: str = "eval/loss", best_mode: Literal["min", "max"] = "min", up_to_best: bool = False
) -> Checkpoints:
    """The checkpoints of a run; see `Task` for what is kept."""
    return Checkpoints(
        config.run / "checkpoints",
        keep_latest=config.checkpoint.keep,
        best_metric=best,
        best_mode=best_mode,
        keep_up_to_best=up_to_best,
    )


def train(
    task: Task, config: JobConfig, mesh: Mesh, program: Program | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """Runs, or goes on with, a run to its end; returns the final state and its evaluation.

    The end is the last step, or an evaluation that is the `--eval.patience`th in a row without a better one.

    Raises:
        Diverged: too many updates in a row had to be skipped, or the last state is of no use.
        StorageError: a checkpoint could not be written.
        Interrupted: a signal came; the state is saved.
    """
    with stopping() as stop:
        ended = _train(task, config, mesh, program or make_program(task, config, mesh), stop)
    if stop.asked is not None:
        raise Interrupted(stop.asked, "after the last step; the same command completes the run")
    return ended


def _train(
    task: Task, config: JobConfig, mesh: Mesh, program: Program, stop: Stop
) -> tuple[TrainState, dict[str, Any]]:
    data = iterate(task.batches)
    with jax.set_mesh(mesh), open_checkpoints(config, task.best, task.best_mode, task.keeps_up_to_best) as checkpoints:
        start = checkpoints.newest() or 0
        if start:
            restored, position = checkpoints.restore(start, program.abstract._asdict())
            state = TrainState(**restored)
            data.set_state(position)
        else:
            state = init_state(task.model, task.inputs, program.optimizer, program.abstract, config.seed, task.params)
        with Report(
            config.run, total_steps=config.steps, start_step=start, log_every=config.log.every, job=task.name
        ) as report:
            meter = Meter(report, config.log.every, skipped=int(state.skipped))
            owed = False  # a checkpoint is due, but the state was not sound
            keeps_evaluated = task.keeps_best or config.eval.patience is not None
            for step in range(start, config.steps + 1):
                last = step == config.steps
                evaluation: dict[str, Any] = {}
                if stop.asked is None and (last or (step and due(step, config.eval.every))):
                    meter.flush()
                    evaluation = task.evaluate(state.evaluated)
                    report.evaluation(step, evaluation)
                stopped = stop.asked is not None
                # The checkpoint that the run goes on from is there already; all it can lack is its evaluation.
                new = step > start or bool(evaluation)
                save = due(step, config.checkpoint.every) or (keeps_evaluated and bool(evaluation))
                owed = owed or last or (new and step > 0 and save)
                if owed or (stopped and step > start):
                    meter.flush()
                    stop_if_diverged(meter, config, checkpoints)
                    if is_sound(state, meter, evaluation):
                        checkpoints.save(step, state._asdict(), data.get_state(), evaluation or None, interim=not owed)
                        owed = False
                    elif last:
                        raise Diverged(f"the last state, of step {step}, is of no use: {why_diverged(checkpoints)}")
                if stopped and stop.asked is not None:
                    raise Interrupted(stop.asked, where_it_goes_on(checkpoints, step))
                if evaluation and not last and out_of_patience(checkpoints, config, step):
                    report.message(
                        f"ends at step {step:,}: {task.best} has not been better for {config.eval.patience} evaluations"
                    )
                    last = True
                if last:
                    break
                meter.start()
                batch = put_batch(next(data), mesh)
                state, metrics = program.step(state, batch, config.seed)
                meter.push(step + 1, metrics)
                checkpoints.check()
                stop_if_diverged(meter, config, checkpoints)
    return state, evaluation


def due(step: int, every: int | None) -> bool:
    """Whether it is time for what is done every so many steps; None is only for the end."""
    return every is not None and step % every == 0


def out_of_patience(checkpoints: Checkpoints, config: JobConfig, step: int) -> bool:
    """Whether the best evaluation is so many evaluations old; it is read from the checkpoints, which outlast a kill."""
    if config.eval.patience is None:
        return False
    best = checkpoints.best_step()
    return best is not None and step - best >= config.eval.patience * (config.eval.every or config.steps)


def is_sound(state: TrainState, meter: "Meter", evaluation: dict[str, Any]) -> bool:
    """Whether a state is worth keeping: finite, and neither its losses nor the step that led to it speaks against.

    An update can ruin parameters that are still finite; the evaluation tells, or else that the next steps are skipped.
    Of a moving average's parameters the evaluation says nothing of those that training goes on from.
    """
    losses = [value for name, value in evaluation.items() if name.endswith("loss")]
    good = all(map(math.isfinite, losses))
    if not losses or state.evaluated is not state.params:
        good = good and meter.streak == 0
    return good and bool(all_finite(state.params))


def stop_if_diverged(meter: "Meter", config: JobConfig, checkpoints: Checkpoints) -> None:
    """Raises Diverged where too many steps in a row were skipped."""
    if meter.streak >= config.max_bad_steps:
        raise Diverged(
            f"the loss or its gradient was not finite in {meter.streak} steps in a row, up to step {meter.step} "
            f"(batch {meter.step - 1}), and their updates were skipped: {why_diverged(checkpoints)}"
        )


def why_diverged(checkpoints: Checkpoints) -> str:
    last = max(checkpoints.steps(), default=None)
    kept = "there is no checkpoint" if last is None else f"the last good checkpoint is that of step {last}"
    return (
        f"training diverged; {kept}. Begin again in another --run with a lower --optimizer.learning-rate, more "
        "--optimizer.warmup-steps or --optimizer.clip-norm 1"
    )


def where_it_goes_on(checkpoints: Checkpoints, step: int) -> str:
    saved = max(checkpoints.steps(), default=None)
    if saved is None:
        return f"at step {step}; there is no checkpoint yet: the same command starts anew"
    return f"at step {step}; the same command goes on from step {saved}"


def say_verdict(loss: float, vocab_size: int) -> None:
    """Says in plain words where a model is worse than guessing all `vocab_size` tokens alike; `loss` is in nats."""
    guessing = math.log(vocab_size)
    if not loss <= 1.05 * guessing:
        say(
            f"WARNING: the held-out loss of {loss:.4g} nat is worse than that of guessing ({guessing:.3g} nat, the "
            f"logarithm of {vocab_size:,} tokens): the model has learned nothing. If its curves rise, training "
            "diverged: try a lower --optimizer.learning-rate; if they fall, it was too short."
        )


class Meter:
    """Reads the metrics of each update one update late, and counts real tokens and the time that steps take.

    Attributes:
        step: the last step whose metrics were read.
        streak: how many steps up to it were skipped in a row.
    """

    def __init__(self, report: Report, log_every: int, skipped: int) -> None:
        self._report, self._log_every, self._skipped = report, log_every, skipped
        self.step, self.streak = 0, 0
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
        values: dict[str, Any] = {name: float(value) for name, value in jax.device_get(metrics).items()}
        skipped = values["skipped_updates"] = round(values["skipped_updates"])
        self.step, self.streak = step, self.streak + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        self._tokens += values["weight/tokens"]
        if step % self._log_every == 0:
            now = time.perf_counter()
            seconds = self._seconds + (now - self._since if self._since is not None else 0.0)
            row = {name: value for name, value in values.items() if not name.startswith("weight/")}
            self._report.train(step, row | {"tokens_per_second": self._tokens / max(seconds, 1e-9)})
            self._tokens, self._seconds = 0.0, 0.0
            self._since = now if self._since is not None else None
