"""Fine-tuning of BERT (Devlin et al. 2019, section 4): one job, which knows no task (see `train.tasks`)."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bert_jax import BertConfig, BertTokenizer
from bert_jax.checkpoints import PretrainedModel
from bert_jax.config import unnamed
from train.data.fingerprint import fingerprint_of
from train.data.padded import PaddedBatches
from train.errors import InputError, RunError, blaming
from train.evaluation import Evaluation, write_scores
from train.finetune_corpus import Corpus, load_corpus
from train.loop import (
    CheckpointConfig,
    EvalConfig,
    JobConfig,
    Program,
    Task,
    make_program,
    nearest_preset,
    open_checkpoints,
    per_epoch,
    train,
    with_learning_rate,
)
from train.optimizer import OptimizerConfig
from train.options import LARGEST, Range, check_options, refuse_idle
from train.run import Run, exporting
from train.sharding import check_rows, make_mesh, row_shards
from train.start import UNNAMED, load_bert
from train.state import shardings_of
from train.tasks import TASKS, ColumnsConfig, Features, FinetuneTask, Settings, TaskObjective
from train.tasks.base import NO_LABEL
from train.terminal import left_out, say, say_table
from transformer_jax import stack_layers
from transformer_jax.checkpoints import write_file
from transformer_jax.checks import shown

# Without --model: words that are learned from the training texts, times they are gone through, and the learning rate.
VOCABULARY, EPOCHS_FROM_SCRATCH, RATE_FROM_SCRATCH = 4096, 15.0, 1e-3
EPOCHS = 3.0


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(JobConfig):
    """Fine-tune BERT for a task; with no option, a small one from scratch on requests made from CLDR data."""

    run: Path = Path("runs/finetune")
    task: Literal["classification", "similarity", "tagging", "question-answering", "multiple-choice", "joint"] = (
        "classification"
    )
    """What is learned; joint: intent and slots."""
    data: tuple[str, ...] = ()
    """TSV or CSV (with a header), JSONL, Parquet (.parquet), CoNLL (.conll), SQuAD's JSON, or tfds:NAME."""
    test_data: tuple[str, ...] = ()
    """Rows that the best checkpoint is scored on in the end; nothing is chosen by them."""
    columns: ColumnsConfig = dataclasses.field(default_factory=ColumnsConfig)
    preset: Literal["tiny", "mini", "small", "medium", "base", "large"] = "tiny"
    """Size of the model without --model, which begins at random."""
    model: str = ""
    """Folder or hub name of a BERT to start from, with its vocabulary."""
    epochs: Annotated[float | None, Range(0, open_low=True)] = None
    """Times that the training data is gone through; by default 3, and 15 without --model."""
    steps: Annotated[int | None, Range(1, 2**31 - 1)] = None  # type: ignore[assignment]
    """Updates of the whole run; by default --epochs decides."""
    batch_size: Annotated[int, Range(1, 2**20)] = 32
    """Rows of a batch over all devices."""
    max_length: Annotated[int, Range(5, 2**16)] = 128
    """Tokens of an example at most; above the model's positions its table is extended (Su 2020)."""
    stride: Annotated[int | None, Range(0, 2**16)] = None
    """Tokens that two windows of a long paragraph share in question answering; by default --max-length / 4."""
    problem_type: Literal["single-label", "multi-label", "regression"] = "single-label"
    """Of classification: one class, several ("a|b", or a list), or a number."""
    seeds: Annotated[int, Range(1, 1000)] = 1
    """Runs that differ in the seed (--seed, --seed + 1, ...): in one program, compiled once."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(schedule="linear", warmup_steps=None)
    )
    eval: EvalConfig = dataclasses.field(default_factory=lambda: EvalConfig(every=None))
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=lambda: CheckpointConfig(every=None, keep=1))
    learning_rates: ClassVar[dict[str, float]] = {
        "tiny": 3e-4, "mini": 1e-4, "small": 1e-4, "medium": 5e-5, "base": 3e-5, "large": 2e-5
    }  # fmt: skip


def main(config: FinetuneConfig) -> None:
    """Runs the job: trains each seed, exports the best checkpoint, and says scores and answers on held-out rows."""
    check_options(config)
    stride = config.max_length // 4 if config.stride is None else config.stride
    task = TASKS[config.task](Settings(config.data, config.columns, config.problem_type, config.max_length, stride))
    check_together(config)
    mesh = make_mesh(config.mesh)
    check_rows(config.batch_size, config.accumulate, mesh)
    corpus = load_corpus(task, config.data, config.eval.data, config.test_data)
    start = load_start(config, task, corpus)
    data = make_data(config, task, corpus, start)
    config = in_steps(config, len(data.training.examples), start.config)
    with Run("finetune", config, corpus.fingerprint) as run:
        params, said = load_params(config, start, config.seed)  # before anything is written: its files may be broken
        words = fingerprint_of("the run's vocabulary", [[start.tokenizer.backend.to_str()]])
        run.begin({**corpus.fingerprint, **words, **start.fingerprint})
        notes = [*corpus.notes, *data.notes, *start.notes, *said]
        say_table(f"finetune: {config.task}, BERT {config.model or config.preset}", notes)
        objective = TaskObjective(make_model(config, start), task)
        shape = (data.padding, config.batch_size, mesh)
        evaluation = Evaluation(objective, corpus.held_out, data.held_out, *shape)
        test = Evaluation(objective, corpus.test, data.test, *shape) if data.test else None
        job = Job(config, task, start, data, objective, evaluation, test, mesh)
        finish(job, train_seeds(job, params))


def check_together(config: FinetuneConfig) -> None:
    """Raises InputError for options that have no meaning beside others."""
    if config.model:
        refuse_idle(config, ("preset",), f"beside --model {config.model}, which decides it")
    if config.task != "question-answering":
        refuse_idle(config, ("stride",), f"for --task {config.task}")
    elif config.stride is not None and config.stride >= config.max_length:
        raise InputError(f"--stride {config.stride} must be smaller than --max-length {config.max_length}")
    if config.task != "classification":
        refuse_idle(config, ("problem_type",), f"for --task {config.task}")
    if not config.data:
        refuse_idle(config.eval, ("data",), "without --data", "--eval.")
        refuse_idle(config, ("problem_type", "test_data"), "without --data")
        given = [field.name for field in dataclasses.fields(ColumnsConfig) if getattr(config.columns, field.name)]
        refuse_idle(config.columns, tuple(given), "without --data", "--columns.")
    if config.task == "similarity" and config.columns.label == "":
        refuse_idle(config, ("accumulate",), "for pairs without scores: each is told from all others of its batch")
    if config.steps is not None:
        refuse_idle(config, ("epochs",), f"beside --steps {config.steps}, which decides it")
    if config.seed + config.seeds > 2**32:
        raise InputError(f"--seeds {config.seeds} from --seed {config.seed} on go beyond {2**32 - 1}; begin lower")


# --- data --------------------------------------------------------------------------------------------------------


class Start(NamedTuple):
    """Where training starts: the configuration with the task's labels, the vocabulary, the fingerprint of files."""

    config: BertConfig
    labels: dict[str, Any]
    tokenizer: BertTokenizer
    fingerprint: dict[str, str]
    notes: list[tuple[str, str]]


def load_start(config: FinetuneConfig, task: FinetuneTask, corpus: Corpus) -> Start:
    """The configuration and vocabulary of --model, or of --preset with a vocabulary learned from the training rows."""
    if not config.model:
        with blaming("--data"):
            tokenizer = BertTokenizer.train(task.texts(corpus.rows), VOCABULARY)
        labels = task.labels(corpus.rows, None)
        reach = max(config.max_length, BertConfig.max_position_embeddings)
        fields = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": reach, **labels}
        return Start(BertConfig.preset(config.preset, **fields), labels, tokenizer, {}, [])
    was, tokenizer, files, notes = load_bert(config.model)
    labels = {**UNNAMED, **task.labels(corpus.rows, was)}
    reach = max(config.max_length, was.max_position_embeddings)
    return Start(dataclasses.replace(was, max_position_embeddings=reach, **labels), labels, tokenizer, files, notes)


class Data(NamedTuple):
    """Features of all sides, and what to say about them."""

    training: Features
    held_out: Features
    test: Features | None
    padding: dict[str, int]
    notes: list[tuple[str, str]]


def make_data(config: FinetuneConfig, task: FinetuneTask, corpus: Corpus, start: Start) -> Data:
    """Examples of all sides."""
    training = task.features(corpus.rows, start.tokenizer, start.config, training=True)
    held_out = task.features(corpus.held_out, start.tokenizer, start.config, training=False)
    test = task.features(corpus.test, start.tokenizer, start.config, training=False) if corpus.test else None
    kinds = 1 + max(int(example["token_type_ids"].max()) for example in training.examples)
    if kinds > start.config.type_vocab_size:
        raise InputError(
            f"--model {config.model}: its type_vocab_size 1 is for one text; two stand beside each other here"
        )
    padding = {"input_ids": start.tokenizer.pad_id, "token_type_ids": 0, "attention_mask": 0, "tags": NO_LABEL}
    lengths = [example["input_ids"].shape[-1] for example in training.examples]
    notes = [
        ("examples", f"{len(training.examples):,} of {np.mean(lengths):.0f} tokens on average, {max(lengths)} at most"),
        *left_out("", training.left_out),
        *left_out("held out: ", held_out.left_out),
        *left_out("test: ", test.left_out if test else {}),
    ]
    labels = start.config.id2label, start.config.slot_labels
    notes += [("labels", shortened(names)) for names in labels if not unnamed(names)]
    return Data(training, held_out, test, padding, notes)


def shortened(names: Sequence[str], count: int = 12) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def in_steps(config: FinetuneConfig, examples: int, start: BertConfig) -> FinetuneConfig:
    """The options with steps where epochs were given, and with the learning rate of the nearest preset."""
    epoch = max(1, examples // config.batch_size)
    epochs = config.epochs or (EPOCHS if config.model else EPOCHS_FROM_SCRATCH)
    steps = config.steps or max(1, round(epochs * examples / config.batch_size))
    if steps > LARGEST:
        raise InputError(f"--epochs {epochs:g} are {steps:.3g} steps, more than {LARGEST}; give fewer")
    config = per_epoch(dataclasses.replace(config, steps=steps), epoch)
    if not config.model and config.optimizer.learning_rate is None:
        config = dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, learning_rate=RATE_FROM_SCRATCH)
        )
    widths = {name: BertConfig.preset(name).hidden_size for name in FinetuneConfig.learning_rates}
    return with_learning_rate(config, nearest_preset(start.hidden_size, widths))


# --- model -------------------------------------------------------------------------------------------------------


def make_model(config: FinetuneConfig, start: Start) -> PretrainedModel:
    """The task's model; its parameters come later, for each seed."""
    made = dataclasses.replace(start.config, scan_layers=config.scan_layers, remat=config.remat)
    return TASKS[config.task].head(made, dtype=jnp.dtype(config.dtype))


def load_params(config: FinetuneConfig, start: Start, seed: int) -> tuple[Any, list[tuple[str, str]]]:
    """The parameters of --model with a head drawn by the seed, None without --model; and what to say about them."""
    if not config.model:
        return None, []
    options = {"max_position_embeddings": start.config.max_position_embeddings, **start.labels}
    with blaming(f"--model {config.model}"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, params = TASKS[config.task].head.from_pretrained(config.model, seed=seed, **options)
    params = stack_layers(params) if config.scan_layers else params
    return params, [("model", str(warning.message)) for warning in caught]


# --- runs --------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What the runs of all seeds share."""

    config: FinetuneConfig
    task: FinetuneTask
    start: Start
    data: Data
    objective: TaskObjective
    evaluation: Evaluation
    test: Evaluation | None
    mesh: Mesh


class Ended(NamedTuple):
    """The best checkpoint of one seed: its options, step, parameters, scores and answers."""

    config: FinetuneConfig
    step: int
    params: Any
    row: dict[str, float]
    answers: list[dict[str, Any]]


def train_seeds(job: Job, params: Any) -> list[Ended]:
    """Trains each seed in its own folder (the run's, where there is one only), with one compilation for all.

    The first one starts from `params`; the others, whose heads are drawn by other seeds, read theirs.
    """
    program: Program | None = None
    ended: list[Ended] = []
    for seed in range(job.config.seed, job.config.seed + job.config.seeds):
        run = job.config.run if job.config.seeds == 1 else job.config.run / f"seed-{seed}"
        config = dataclasses.replace(job.config, seed=seed, run=run)
        if ended:
            params, _ = load_params(config, job.start, seed)
        task = loop_task(job, config, params)
        program = program or make_program(task, config, job.mesh)
        train(task, config, job.mesh, program)
        ended.append(best_of(job, config, program))
    return ended


def loop_task(job: Job, config: FinetuneConfig, params: Any) -> Task:
    """What the loop is handed for one seed."""
    batches = PaddedBatches(
        job.data.training.examples,
        padding=job.data.padding,
        batch_size=config.batch_size,
        seed=config.seed,
        steps=cast(int, config.steps),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    best, mode = job.task.best
    return Task(
        "finetune", job.objective.model, job.task.inputs(row_shards(job.mesh)), job.objective, batches,
        lambda params: job.evaluation(params)[0], best, params, mode, keeps_best=True,
    )  # fmt: skip


def best_of(job: Job, config: FinetuneConfig, program: Program) -> Ended:
    """The best checkpoint of a run that has ended; writes its answers."""
    with open_checkpoints(config, *job.task.best) as checkpoints:
        step = checkpoints.best_step()
        if step is None or not checkpoints.intact([step]):
            raise RunError(f"the best checkpoint in {config.run} is not intact: the same command makes it again")
        params = checkpoints.restore_params(step)
    on_device = jax.device_put(params, shardings_of(program.abstract.params))
    row, answers = job.evaluation(on_device)
    job.evaluation.write(config.run, "", answers)
    if job.test:
        test_row, test_answers = job.test(on_device)
        row |= {name.replace("eval/", "test/"): value for name, value in test_row.items()}
        job.test.write(config.run, "test-", test_answers)
    return Ended(config, step, params, row, answers)


def finish(job: Job, ended: list[Ended]) -> None:
    """Exports the best seed's model, writes scores.json, and says the scores and a few answers."""
    if jax.process_index():
        return
    config, (best, mode) = job.config, job.task.best
    chosen = (max if mode == "max" else min)(ended, key=lambda one: one.row[best])
    with exporting(config.run) as folder:
        job.objective.model.save_pretrained(folder, chosen.params)
        job.start.tokenizer.save_pretrained(folder)
        for name, content in job.task.files(job.start.config).items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            write_file(path, content)
    rows = write_scores(config.run / "scores.json", {one.config.seed: {"step": one.step, **one.row} for one in ended})
    which = f"step {chosen.step}" + (f" of seed {chosen.config.seed}" if len(ended) > 1 else "")
    say_table(f"scores of the best checkpoint by {best.removeprefix('eval/')} (exported: {which})", rows)
    for answer in chosen.answers[:3]:
        short = {name: value for name, value in answer.items() if name not in ("probabilities", "n_best")}
        say("  " + shown(short, 300))
    say(f"\nrun folder: {config.run}")
