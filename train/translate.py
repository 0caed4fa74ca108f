"""Training of the encoder-decoder Transformer on pairs of sentences (Vaswani et al. 2017, section 5)."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train.architecture import PRESETS, Architecture, Preset
from train.data.fingerprint import fingerprint_of, fingerprint_of_model
from train.data.packing import PackedBatches
from train.data.parallel import Pair, encode_pairs
from train.errors import InputError, RunError
from train.loop import (
    CheckpointConfig,
    EvalConfig,
    JobConfig,
    Task,
    nearest_preset,
    open_checkpoints,
    per_epoch,
    say_verdict,
    train,
    with_learning_rate,
)
from train.objectives import TranslateObjective
from train.optimizer import OptimizerConfig
from train.options import Count, Range, Share, check_options, refuse_idle
from train.run import Run, exporting
from train.sharding import gather, make_mesh, put_batch, row_shards
from train.state import evaluate, make_eval_step
from train.terminal import left_out, say, say_table
from train.translate_corpus import Corpus, load_corpus
from train.translate_scores import bleu_row, say_scores, say_translations, translations_of
from train.translate_start import (
    Start,
    keep_vocabulary,
    load_start,
    load_vocabulary,
    spelling_note,
    unspoken,
    with_forbidden,
)
from transformer_jax import Transformer, TransformerConfig, Translator, stack_layers
from transformer_jax.checkpoints import write_files
from transformer_jax.decoding import Forbidden
from transformer_jax.decoding_defaults import DecodingDefaults, constraints_of, decoding_file
from transformer_jax.tokenizer import save_tokenizer, serialized

EVAL_BATCHES = 16
# Batches have a multiple of so many rows on every mesh: up to 8 shards leave the batches what they are.
ROW_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class TranslateConfig(JobConfig):
    """Train a Transformer to translate; with no option, English to German on dates, amounts, lists and names."""

    run: Path = Path("runs/translate")
    data: tuple[str, ...] = ()
    """A TSV file (source, tab, target; .gz too), two aligned files, or tfds:NAME/FROM-TO. Or several .tsv and tfds:,
    which LANGUAGE-LANGUAGE= may stand in front of: en-de=pairs.tsv begins each source with the tag >>de<<."""
    both_directions: bool = False
    """Train on --data that names languages from target to source, too."""
    preset: Preset = "tiny"
    """Size of the model."""
    architecture: Architecture = dataclasses.field(default_factory=Architecture)
    model: str = ""
    """Folder of a Transformer or a Marian to go on from, with its vocabulary, such as the export of a run; or of a
    BERT, whose layers the encoder and the decoder then start from."""
    steps: Count = 2500
    batch_size: Annotated[int, Range(1, 2**26)] = 1280
    """Target tokens of a batch over all devices, padding included."""
    max_length: Annotated[int, Range(2, 2**16)] = 128
    """Longer pairs are left out."""
    vocab_size: Annotated[int, Range(4, 1_000_000)] = 1200
    """Size of the SentencePiece vocabulary that both languages share."""
    target_vocab_size: Annotated[int | None, Range(4, 1_000_000)] = None
    """Size of a vocabulary of the targets' own; --vocab-size is that of sources then."""
    label_smoothing: Share = 0.1
    """Share of the target's weight that is spread over the vocabulary."""
    average: Count = 5
    """Checkpoints that are averaged into the exported model: the last ones, with --eval.patience those up to the best.
    With --optimizer.ema they hold moving averages, and these are averaged."""
    best: Literal["nll_loss", "bleu"] = "nll_loss"
    """With --eval.patience: what tells the best checkpoint, the least held-out loss or the greatest BLEU."""
    held_out: Count = 1000
    """Pairs that are held out of --data without --eval.data; of each direction that it names."""
    bleu_sentences: Count = 200
    """Held-out sentences that are decoded greedily at each evaluation."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            schedule="inverse-square-root",
            warmup_steps=400,
            weight_decay=0.0,
            beta2=0.98,
            epsilon=1e-9,
        )
    )
    eval: EvalConfig = dataclasses.field(default_factory=lambda: EvalConfig(every=500))
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=lambda: CheckpointConfig(every=100, keep=5))
    learning_rates: ClassVar[dict[str, float]] = {"tiny": 2e-3, "base": 7e-4, "big": 5e-4, "bert": 1e-4}


def main(config: TranslateConfig) -> None:
    """Runs the job: trains, averages the last checkpoints, exports, scores the held-out pairs and shows ten."""
    check_choices(config)
    mesh = make_mesh(config.mesh)
    start = load_start(config.model, config.seed)
    config = with_learning_rate(config, learning_rate_of(start.model.config) if start else config.preset)
    parts = math.lcm(ROW_MULTIPLE, row_shards(mesh) * config.accumulate)
    with Run("translate", config) as run:
        corpus = load_corpus(config.data, config.eval.data, config.held_out, config.both_directions)
        sizes = config.vocab_size, config.target_vocab_size
        held_out_option = "--eval.data" if config.eval.data else "--data" if config.data else "--held-out"
        processor, notes = load_vocabulary(config.run, run.going_on, start, corpus, held_out_option, *sizes)
        notes += spelling_note(processor, corpus.held_out)
        model = make_model(config, start, processor)
        shape = {"multiple": parts}
        batches = make_batches(
            config, model, processor, corpus.pairs, steps=config.steps, seed=config.seed, option="--data", **shape
        )
        held_out_batches = make_batches(
            config, model, processor, corpus.held_out, steps=EVAL_BATCHES, seed=0, option=held_out_option, **shape
        )
        made_for = {
            **fingerprint_of("the run's vocabulary", [[serialized(processor).hex()]]),
            **fingerprint_of("the shape of batches (--mesh and --accumulate divide it)", [[str(batches.shape)]]),
            **(fingerprint_of_model(Path(config.model)) if config.model else {}),
        }
        run.begin({**corpus.fingerprint, **made_for})
        keep_vocabulary(config.run, processor)
        config = per_epoch(config, batches.batches_per_epoch)
        count = min(EVAL_BATCHES, held_out_batches.batches_per_epoch)
        say_table(
            f"translate: Transformer {config.model or config.preset}",
            [*corpus.notes, *notes, *batch_notes(config, corpus, batches, held_out_batches, count)],
        )
        objective = TranslateObjective(model, config.label_smoothing)
        eval_step = make_eval_step(objective)
        sources = [source for source, _ in corpus.held_out[: config.bleu_sentences]]
        decoding = start and start.decoding
        constraints = constraints_of(decoding, model.config.eos_id) if decoding else ()
        if never := unspoken(model.config, processor):
            constraints = (*constraints, Forbidden(never))

        def evaluate_held_out(params: Any) -> dict[str, Any]:
            row = evaluate(eval_step, params, (put_batch(held_out_batches[k], mesh) for k in range(count)))
            if not math.isfinite(row["eval/nll_loss"]):
                return row | {"eval/bleu": math.nan}  # there is nothing to decode
            how: dict[str, Any] = {"num_beams": 1, "max_length": config.max_length, "constraints": constraints}
            translator = Translator(model, on_host(params), processor, mesh=mesh.local_mesh, **how)
            return row | bleu_row(translations_of(translator, sources), corpus)

        ids = jax.ShapeDtypeStruct((row_shards(mesh), 8), jnp.int32)
        params = start and (stack_layers(start.params) if config.scan_layers else start.params)
        best, mode, up_to_best = judge_of(config)
        task = Task(
            "translate", model, (ids, ids), objective, batches, evaluate_held_out, best, params, mode,
            keeps_up_to_best=up_to_best,
        )  # fmt: skip
        state, row = train(task, config, mesh)
        finish(config, model, processor, corpus, decoding, int(state.step), mesh.local_mesh)
        say_verdict(row["eval/nll_loss"], model.config.vocab_size)


def check_choices(config: TranslateConfig) -> None:
    """Raises InputError for options that cannot be, contradict each other, or have no meaning."""
    check_options(config)
    if config.model:
        decided = f"beside --model {config.model}, which decides it"
        refuse_idle(config, ("preset", "vocab_size", "target_vocab_size"), decided)
        names = tuple(field.name for field in dataclasses.fields(Architecture))
        refuse_idle(config.architecture, names, decided, "--architecture.")
    if not config.data:
        refuse_idle(config, ("held_out", "both_directions"), "without --data")
        refuse_idle(config.eval, ("data",), "without --data", "--eval.")
    if config.eval.data:
        refuse_idle(config, ("held_out",), "beside --eval.data")
    if config.eval.patience is None:
        refuse_idle(config, ("best",), "without --eval.patience")
    if config.both_directions:
        refuse_idle(config, ("target_vocab_size",), "beside --both-directions: both languages are on both sides")
    if config.average > config.checkpoint.keep:
        raise InputError(
            f"--average {config.average} checkpoints: only {config.checkpoint.keep} are kept; "
            f"give --checkpoint.keep {config.average}"
        )
    config.architecture.config(config.preset, config.vocab_size)  # it says now what cannot be


# --- data --------------------------------------------------------------------------------------------------------


def batch_notes(
    config: TranslateConfig, corpus: Corpus, batches: PackedBatches, held_out: PackedBatches, count: int
) -> list[tuple[str, str]]:
    """What the batches are made of, and which pairs are in none."""
    longer = f"pairs longer than --max-length {config.max_length}"
    rows, *lengths = batches.shape
    padding = "source {:.1%}, target {:.1%}".format(*batches.padding)
    evaluated = count / held_out.batches_per_epoch
    scored = min(config.bleu_sentences, len(corpus.held_out))
    return [
        *left_out("", {longer: batches.dropped}),
        *left_out("held out: ", {f"{longer}; to be scored, their sources are cut": held_out.dropped}),
        (
            "batches",
            f"{rows} rows of {lengths[0]} source and {lengths[1]} target tokens, of which is padding: {padding}",
        ),
        ("epoch", f"{batches.batches_per_epoch:,} batches of all {len(corpus.pairs) - batches.dropped:,} pairs"),
        (
            "evaluation",
            f"loss on {evaluated:.0%} of {len(corpus.held_out) - held_out.dropped:,} held-out pairs, greedy BLEU on "
            f"{scored:,}; in the end beam search on all",
        ),
    ]


def make_batches(
    config: TranslateConfig, model: Transformer, processor: Any, pairs: Sequence[Pair], **options: Any
) -> PackedBatches:
    c = model.config
    sources, targets = encode_pairs(processor, pairs, c.eos_id, c.encoder_start_id)
    return PackedBatches(
        sources,
        targets,
        tokens_per_batch=config.batch_size,
        max_length=config.max_length,
        pad_id=c.pad_id,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **options,
    )


# --- model -----------------------------------------------------------------------------------------------------------


def learning_rate_of(model: TransformerConfig) -> str:
    """Whose learning rate is the default: that of models made like a BERT, or of the preset of the nearest width."""
    widths = {name: preset(4).features for name, preset in PRESETS.items()}
    return "bert" if model.embeddings == "normalised" else nearest_preset(model.features, widths)


def make_model(config: TranslateConfig, start: Start | None, processor: Any) -> Transformer:
    how: dict[str, Any] = {"scan_layers": config.scan_layers, "remat": config.remat}
    if start:
        made = dataclasses.replace(start.model.config, **how)
    else:
        if config.target_vocab_size:
            how |= {"decoder_vocab_size": config.target_vocab_size, "share_encoder_decoder_embeddings": False}
        made = config.architecture.config(config.preset, processor.vocab_size(), **how)
    if made.positions == "learned" and made.max_length < config.max_length:
        raise InputError(
            f"--max-length {config.max_length}: the model has {made.max_length} learned positions; give at most so many"
        )
    return Transformer(made, dtype=jnp.dtype(config.dtype))


def on_host(params: Any) -> Any:
    """Parameters gathered from the mesh, to decode with on the devices of each process."""
    return jax.tree.map(gather, params)


# --- the end of a run --------------------------------------------------------------------------------------------


def judge_of(config: TranslateConfig) -> tuple[str, Literal["min", "max"], bool]:
    """How checkpoints are judged: the name in an evaluation's row that --best is about, whether its least or greatest
    value is the best, and whether the run ends with the checkpoints up to the best one."""
    return f"eval/{config.best}", "max" if config.best == "bleu" else "min", config.eval.patience is not None


def average_checkpoints(config: TranslateConfig, last_step: int) -> tuple[list[int], Any]:
    """The steps of the checkpoints that --average is about, and the mean of their parameters.

    A run with --eval.patience goes on behind its best step until it is sure: what it found out there does not count.
    """
    with open_checkpoints(config, *judge_of(config)) as checkpoints:
        last = (checkpoints.best_step() if config.eval.patience else None) or last_step
        # The best one is kept longer than that.
        since = last - config.average * (config.checkpoint.every or config.steps)
        latest = [step for step in checkpoints.regular_steps() if since < step <= last][-config.average :]
        steps = checkpoints.intact(latest)
        if not steps:
            raise RunError(f"no checkpoint in {config.run} is intact: the same command makes them again")
        trees = [checkpoints.restore_params(step) for step in steps]
    return steps, jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64).astype(np.float32), *trees)


def finish(
    config: TranslateConfig,
    model: Transformer,
    processor: Any,
    corpus: Corpus,
    decoding: DecodingDefaults | None,
    last_step: int,
    mesh: Mesh,
) -> None:
    """Averages, exports, scores with the paper's beam search, and shows ten translations."""
    steps, params = average_checkpoints(config, last_step)
    if jax.process_index():
        return
    exported, params = with_forbidden(model.config, params, unspoken(model.config, processor))
    with exporting(config.run) as folder:
        model.clone(config=exported).save_pretrained(folder, params)
        save_tokenizer(folder, processor)
        if decoding:
            write_files(folder, decoding_file(decoding, exported))
    how: dict[str, Any] = {"num_beams": 4, "length_penalty": 0.6, "early_stopping": False, "preset": "paper"}
    translator = Translator.from_pretrained(config.run / "export", max_length=config.max_length, mesh=mesh, **how)
    translations = translations_of(translator, [source for source, _ in corpus.held_out])
    say_translations(translations, corpus)
    less = f" ({len(steps)} of --average {config.average})" if len(steps) < config.average else ""
    say(f"\naverage of the checkpoints at steps {', '.join(map(str, steps))}{less}; beam 4, alpha 0.6")
    say_scores(translations, corpus)
    say(f"run folder: {config.run}")
