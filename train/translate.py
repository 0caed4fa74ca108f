"""Training of the encoder-decoder Transformer on pairs of sentences (Vaswani et al. 2017, section 5)."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from train.data.batches import TokenBatches, bucket_lengths
from train.data.cldr_pairs import cldr_pairs
from train.data.parallel import (
    Pair,
    encode_pairs,
    hold_out,
    load_sentencepiece,
    read_pairs,
    train_sentencepiece,
)
from train.loop import CheckpointConfig, EvalConfig, JobConfig, Task, open_checkpoints, train
from train.metrics import corpus_scores
from train.optimizer import OptimizerConfig
from train.run import begin_run, check_run
from train.sharding import gather, make_mesh, put_batch, row_shards
from train.state import Batch, Sums, make_eval_step
from transformer_jax import Transformer, TransformerConfig, Translator, cross_entropy, shift_right
from transformer_jax.checkpoints import write_file

EVAL_BATCHES = 16
# Batches have a multiple of so many rows on every mesh: up to 8 shards leave the batches what they are.
ROW_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class TranslateConfig(JobConfig):
    """Train a Transformer to translate; with no option, English to German on dates, amounts, lists and names."""

    run: Path = Path("runs/translate")
    data: tuple[str, ...] = ()
    """A TSV file (source, tab, target; .gz too), two aligned files, or tfds:NAME/FROM-TO."""
    preset: Literal["tiny", "base", "big"] = "tiny"
    """Size of the model."""
    steps: int = 2500
    batch_size: int = 1280
    """Target tokens of a batch over all devices, padding included."""
    max_length: int = 128
    """Longer pairs are left out."""
    vocab_size: int = 1200
    """Size of the SentencePiece vocabulary that both languages share."""
    label_smoothing: float = 0.1
    """Share of the target's weight that is spread over the vocabulary."""
    average: int = 5
    """Checkpoints that are averaged into the exported model."""
    held_out: int = 1000
    """Pairs that are held out of --data without --eval.data."""
    bleu_sentences: int = 200
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
    learning_rates: ClassVar[dict[str, float]] = {"tiny": 2e-3, "base": 7e-4, "big": 5e-4}


class TranslateObjective:
    """Label-smoothed cross entropy of the target tokens, given all before them and the source."""

    terms: tuple[str, ...] = ("smoothed_loss",)

    def __init__(self, model: Transformer, label_smoothing: float):
        self._model, self._label_smoothing = model, label_smoothing

    def prepare(self, batch: Batch, key: Array) -> tuple[Batch, Sums]:
        tokens = jnp.sum((batch["labels"] != self._model.config.pad_id).astype(jnp.float32))
        return batch, dict.fromkeys(("smoothed_loss", "nll_loss", "accuracy", "tokens"), tokens)

    def sums(self, params: Any, batch: Batch, dropout_key: Array | None) -> Sums:
        c = self._model.config
        labels_BL = batch["labels"]
        weights_BL = (labels_BL != c.pad_id).astype(jnp.float32)
        out: Any = self._model.apply(
            {"params": params},
            batch["input_ids"],
            shift_right(labels_BL, c.decoder_start_id),
            batch["input_ids"] != c.pad_id,
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )
        logits_BLV = out.logits
        smoothed = cross_entropy(logits_BLV, labels_BL, weights_BL, label_smoothing=self._label_smoothing)
        return {
            "smoothed_loss": smoothed[0],
            "nll_loss": cross_entropy(logits_BLV, labels_BL, weights_BL)[0],
            "accuracy": jnp.sum((jnp.argmax(logits_BLV, -1) == labels_BL) * weights_BL),
        }


def main(config: TranslateConfig) -> None:
    """Runs the job: trains, averages the last checkpoints, exports, scores the held-out pairs and shows ten."""
    mesh = make_mesh(config.mesh)
    going_on = check_run("translate", config)
    pairs, held_out = load_pairs(config)
    vocabulary = config.run / "export" / "spm.model"
    if going_on and vocabulary.exists():
        processor = load_sentencepiece(vocabulary)
    else:
        processor = train_sentencepiece(pairs, config.vocab_size)
    model = make_model(config, processor.vocab_size())
    parts = math.lcm(ROW_MULTIPLE, row_shards(mesh) * config.accumulate)
    batches = make_batches(config, processor, pairs, config.steps, config.seed, parts)
    held_out_batches = make_batches(config, processor, held_out, EVAL_BATCHES, 0, parts)
    begin_run("translate", config)
    if jax.process_index() == 0:
        vocabulary.parent.mkdir(exist_ok=True)
        write_file(vocabulary, processor.serialized_model_proto())
    print(
        f"translate: Transformer {config.preset}, {len(pairs)} pairs, vocabulary {processor.vocab_size()}, "
        f"rows x tokens a batch {batches.shapes}; held out: {len(held_out)} pairs",
        flush=True,
    )
    objective = TranslateObjective(model, config.label_smoothing)
    eval_step = make_eval_step(objective)
    sources, references = zip(*held_out[: config.bleu_sentences], strict=True)

    def evaluate(params: Any) -> dict[str, Any]:
        totals = [
            eval_step(params, put_batch(held_out_batches[k], mesh), jax.random.key(0))
            for k in range(min(EVAL_BATCHES, held_out_batches.batches_per_epoch))
        ]
        sums, weights = jax.tree.map(lambda *xs: sum(float(x) for x in xs), *totals)
        row = {f"eval/{name}": sums[name] / weights[name] for name in sums}
        greedy = Translator(model, on_host(params), processor, num_beams=1, max_length=config.max_length)
        return row | {"eval/bleu": corpus_scores(greedy(sources), references)["bleu"]}

    ids = jax.ShapeDtypeStruct((row_shards(mesh), 8), jnp.int32)
    train(Task("translate", model, (ids, ids), objective, batches, evaluate, "eval/nll_loss"), config, mesh)
    finish(config, model, processor, held_out)


# --- data and model ----------------------------------------------------------------------------------------------


def load_pairs(config: TranslateConfig) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs."""
    if not config.data:
        return cldr_pairs()
    pairs = read_pairs(config.data)
    if config.eval.data:
        return pairs, read_pairs(config.eval.data, option="--eval.data", split="validation")
    return hold_out(pairs, config.held_out)


def make_model(config: TranslateConfig, vocab_size: int) -> Transformer:
    make = {"tiny": TransformerConfig.tiny, "base": TransformerConfig.base, "big": TransformerConfig.big}
    options = {"scan_layers": config.scan_layers, "remat": config.remat}
    return Transformer(make[config.preset](vocab_size, **options), dtype=jnp.dtype(config.dtype))


def make_batches(
    config: TranslateConfig, processor: Any, pairs: Sequence[Pair], steps: int, seed: int, multiple: int
) -> TokenBatches:
    sources, targets = encode_pairs(processor, pairs)
    longest = [max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]
    return TokenBatches(
        sources,
        targets,
        tokens_per_batch=config.batch_size,
        lengths=bucket_lengths(longest, maximum=config.max_length),
        seed=seed,
        steps=steps,
        multiple=multiple,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def on_host(params: Any) -> Any:
    """Parameters gathered from the mesh, to decode with on one device."""
    return jax.tree.map(gather, params)


# --- the end of a run --------------------------------------------------------------------------------------------


def finish(config: TranslateConfig, model: Transformer, processor: Any, held_out: Sequence[Pair]) -> None:
    """Averages, exports, scores with the paper's beam search, and prints ten translations."""
    with open_checkpoints(config, "eval/nll_loss") as checkpoints:
        steps = checkpoints.steps()[-config.average :]
        trees = [checkpoints.restore_params(step) for step in steps]
    params = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64).astype(np.float32), *trees)
    if jax.process_index():
        return
    export = config.run / "export"
    model.save_pretrained(export, params)
    translator = Translator.from_pretrained(export, num_beams=4, length_penalty=0.6, max_length=config.max_length)
    sources, references = zip(*held_out, strict=True)
    translations = translator(sources)
    scores = corpus_scores(translations, references)
    exact = sum(t == r for t, r in zip(translations, references, strict=True)) / len(references)
    for source, reference, translation in list(zip(sources, references, translations, strict=True))[
        :: max(1, len(sources) // 10)
    ][:10]:
        print(f"\n  source:      {source}\n  reference:   {reference}\n  translation: {translation}")
    print(f"\naverage of the checkpoints at steps {', '.join(map(str, steps))}; beam 4, alpha 0.6")
    print(f"BLEU {scores['bleu']:.2f} on {len(held_out)} held-out pairs, {exact:.1%} of them exact")
    print(f"  {scores['bleu_signature']}")
    print(f"chrF {scores['chrf']:.2f}\n  {scores['chrf_signature']}")
    print(f"run folder: {config.run}", flush=True)
