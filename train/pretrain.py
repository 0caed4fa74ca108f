"""Pretraining of BERT: masked language modelling and next-sentence prediction (Devlin et al. 2019, section 3.1)."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bert_jax import BertConfig, BertForPreTraining, BertTokenizer, FillMask
from bert_jax.masking import mask_tokens, maskable
from train.data.batches import ExampleBatches
from train.data.documents import Document, read_documents
from train.data.pretraining import SentencePairs, TokenCorpus, tokenize_corpus
from train.data.python_docs import python_documents
from train.errors import InputError
from train.loop import CheckpointConfig, EvalConfig, JobConfig, Task, train
from train.optimizer import OptimizerConfig
from train.run import begin_run, check_run
from train.sharding import gather, make_mesh, put_batch, row_shards
from train.state import Batch, Sums, make_eval_step
from transformer_jax import cross_entropy

EVAL_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class PretrainConfig(JobConfig):
    """Pretrain BERT on documents; with no option, on the prose that every Python carries."""

    run: Path = Path("runs/pretrain")
    data: tuple[str, ...] = ()
    """Text files (a paragraph a line, blank line between documents; .gz too), JSONL files, or tfds:NAME."""
    preset: Literal["tiny", "mini", "small", "medium", "base", "large"] = "tiny"
    """Size of the model."""
    steps: int = 1600
    batch_size: int = 64
    """Rows of a batch over all devices."""
    max_length: int = 64
    """Tokens of a row."""
    field: str = "text"
    """Field of a JSONL or TFDS record that holds the text."""
    tokenizer: str = ""
    """Folder or hub name of a WordPiece vocabulary; by default one is trained on the training data."""
    vocab_size: int = 2048
    """Size of a vocabulary that is trained."""
    whole_word: bool = False
    """Mask all pieces of a word together."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(name="muon", schedule="cosine", warmup_steps=100)
    )
    eval: EvalConfig = dataclasses.field(default_factory=lambda: EvalConfig(every=400))
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=lambda: CheckpointConfig(every=400))
    learning_rates: ClassVar[dict[str, float]] = {
        "tiny": 5e-3, "mini": 1e-3, "small": 5e-4, "medium": 3e-4, "base": 1e-4, "large": 1e-4
    }  # fmt: skip


class PretrainObjective:
    """The two losses, with masking drawn on the device as a pure function of the key."""

    terms: tuple[str, ...] = ("mlm_loss", "nsp_loss")

    def __init__(self, model: BertForPreTraining, tokenizer: BertTokenizer, max_length: int, whole_word: bool):
        self._model = model
        self._maskable = functools.partial(maskable, special_ids=np.asarray(tokenizer.special_ids))
        self._mask = functools.partial(
            mask_tokens,
            num_predictions=math.ceil(0.15 * max_length),
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            special_ids=tokenizer.special_ids,
            continuation_V=tokenizer.continuation_mask() if whole_word else None,
        )

    def prepare(self, batch: Batch, key: Array) -> tuple[Batch, Sums]:
        masked = self._mask(batch["input_ids"], self._maskable(batch["input_ids"]), key)
        predictions = jnp.sum(masked.weights_BP)
        rows = jnp.float32(batch["input_ids"].shape[0])
        weights = {
            "mlm_loss": predictions,
            "nsp_loss": rows,
            "mlm_accuracy": predictions,
            "nsp_accuracy": rows,
            "tokens": jnp.sum(batch["attention_mask"].astype(jnp.float32)),
        }
        prepared = batch | {
            "input_ids": masked.input_ids_BL,
            "masked_positions": masked.positions_BP,
            "masked_labels": masked.labels_BP,
            "masked_weights": masked.weights_BP,
        }
        return prepared, weights

    def sums(self, params: Any, batch: Batch, dropout_key: Array | None) -> Sums:
        out: Any = self._model.apply(
            {"params": params},
            batch["input_ids"],
            batch["token_type_ids"],
            batch["attention_mask"],
            masked_positions=batch["masked_positions"],
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )
        prediction_logits_BPV, next_logits_B2 = out
        labels_BP, weights_BP = batch["masked_labels"], batch["masked_weights"]
        next_B = batch["next_sentence_label"]
        return {
            "mlm_loss": cross_entropy(prediction_logits_BPV, labels_BP, weights_BP)[0],
            "nsp_loss": cross_entropy(next_logits_B2, next_B)[0],
            "mlm_accuracy": jnp.sum((jnp.argmax(prediction_logits_BPV, -1) == labels_BP) * weights_BP),
            "nsp_accuracy": jnp.sum((jnp.argmax(next_logits_B2, -1) == next_B).astype(jnp.float32)),
        }


def main(config: PretrainConfig) -> None:
    """Runs the job: trains, evaluates on held-out documents, exports, and fills in five held-out sentences."""
    mesh = make_mesh(config.mesh)
    if config.batch_size % (row_shards(mesh) * config.accumulate):
        raise InputError(
            f"--batch-size {config.batch_size} must be a multiple of {row_shards(mesh) * config.accumulate}: "
            f"the mesh splits it {row_shards(mesh)} ways and --accumulate {config.accumulate} times"
        )
    going_on = check_run("pretrain", config)
    documents, held_out = load_documents(config)
    tokenizer = load_tokenizer(config, documents, going_on)
    try:
        bert_config = getattr(BertConfig, config.preset)(
            vocab_size=tokenizer.vocab_size, scan_layers=config.scan_layers, remat=config.remat
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.max_length > bert_config.max_position_embeddings:
        raise InputError(f"--max-length {config.max_length}: BERT has {bert_config.max_position_embeddings} positions")
    examples = make_examples(documents, tokenizer, config, seed=config.seed)
    held_out_corpus = tokenize_corpus(held_out, tokenizer.backend)
    held_out_examples = pair_sentences(held_out_corpus, tokenizer, config, seed=1)
    batches = ExampleBatches(
        examples,
        batch_size=config.batch_size,
        seed=config.seed,
        steps=config.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    begin_run("pretrain", config)
    if jax.process_index() == 0:
        tokenizer.save_pretrained(config.run / "tokenizer")

    model = BertForPreTraining(bert_config, dtype=jnp.dtype(config.dtype))
    ids = jax.ShapeDtypeStruct((config.batch_size, config.max_length), jnp.int32)
    objective = PretrainObjective(model, tokenizer, config.max_length, config.whole_word)
    entropy = unigram_entropy(held_out_corpus)
    print(
        f"pretrain: BERT {config.preset}, {len(documents)} documents with {len(examples)} pairs, "
        f"vocabulary {tokenizer.vocab_size}; held out: {len(held_out)} documents, "
        f"unigram entropy {entropy:.3f} nat",
        flush=True,
    )
    eval_step = make_eval_step(objective)

    def evaluate(params: Any) -> dict[str, Any]:
        return evaluate_examples(eval_step, params, held_out_examples, config, mesh) | {"eval/unigram_loss": entropy}

    task = Task("pretrain", model, (ids,), objective, batches, evaluate, "eval/mlm_loss")
    state, row = train(task, config, mesh)
    finish(config, model, tokenizer, state.params, held_out, row)


# --- data --------------------------------------------------------------------------------------------------------


def load_documents(config: PretrainConfig) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents.

    Without --eval.data every twentieth document is held out; of fewer than 20 documents, the last twentieth of each.
    """
    if not config.data:
        return python_documents()
    documents = read_documents(config.data, config.field)
    if config.eval.data:
        return documents, read_documents(config.eval.data, config.field, option="--eval.data")
    if len(documents) >= 20:
        return [d for i, d in enumerate(documents) if i % 20], documents[::20]
    cuts = [len(document) - max(1, len(document) // 20) for document in documents]
    pairs = list(zip(documents, cuts, strict=True))
    return [document[:cut] for document, cut in pairs if cut], [document[cut:] for document, cut in pairs]


def load_tokenizer(config: PretrainConfig, documents: Sequence[Document], going_on: bool) -> BertTokenizer:
    """The run's own vocabulary if it goes on, the one that was named, or one trained on the training documents."""
    if going_on and (config.run / "tokenizer" / "vocab.txt").exists():
        return BertTokenizer.from_pretrained(config.run / "tokenizer")
    if config.tokenizer:
        try:
            return BertTokenizer.from_pretrained(config.tokenizer)
        except ValueError as error:
            raise InputError(f"--tokenizer {config.tokenizer}: {error}") from error
    try:
        return BertTokenizer.train((s for document in documents for s in document), config.vocab_size)
    except ValueError as error:
        raise InputError(f"--vocab-size {config.vocab_size}: {error}") from error


def pair_sentences(corpus: TokenCorpus, tokenizer: BertTokenizer, config: PretrainConfig, seed: int) -> SentencePairs:
    return SentencePairs(
        corpus,
        max_length=config.max_length,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
        seed=seed,
    )


def make_examples(
    documents: Sequence[Document], tokenizer: BertTokenizer, config: PretrainConfig, seed: int
) -> SentencePairs:
    return pair_sentences(tokenize_corpus(documents, tokenizer.backend), tokenizer, config, seed)


def unigram_entropy(corpus: TokenCorpus) -> float:
    """Entropy of the corpus's own token distribution in nats: no predictor without context does better on it."""
    counts = np.bincount(corpus.tokens)
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log(p)))


# --- evaluation --------------------------------------------------------------------------------------------------


def evaluate_examples(
    eval_step: Any, params: Any, examples: SentencePairs, config: PretrainConfig, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """Losses and accuracies over the same held-out pairs with the same masks at every call."""
    count = min(EVAL_BATCHES, max(1, len(examples) // config.batch_size))
    batches = ExampleBatches(
        examples,
        batch_size=config.batch_size,
        seed=0,
        steps=count,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    totals: list[Any] = []
    for index in range(count):
        key = jax.random.fold_in(jax.random.key(0), index)
        totals.append(eval_step(params, put_batch(batches[index], mesh), key))
    sums, weights = jax.tree.map(lambda *xs: float(np.sum([np.asarray(x) for x in xs])), *totals)
    return {f"eval/{name}": sums[name] / weights[name] for name in sums}


def finish(
    config: PretrainConfig,
    model: BertForPreTraining,
    tokenizer: BertTokenizer,
    params: Any,
    held_out: Sequence[Document],
    row: dict[str, Any],
) -> None:
    """Exports the model in Hugging Face's layout, prints the held-out figures and fills in five sentences."""
    params = jax.tree.map(gather, params)
    if jax.process_index():
        return
    export = config.run / "export"
    model.save_pretrained(export, params)
    tokenizer.save_pretrained(export)
    gap = row["eval/unigram_loss"] - row["eval/mlm_loss"]
    print(f"held-out masked-LM loss {row['eval/mlm_loss']:.3f} nat, accuracy {row['eval/mlm_accuracy']:.1%}")
    print(f"unigram entropy of the held-out tokens {row['eval/unigram_loss']:.3f} nat: {gap:.3f} nat above the loss")
    print(f"held-out next-sentence accuracy {row['eval/nsp_accuracy']:.1%}, loss {row['eval/nsp_loss']:.3f} nat")
    sentences = masked_sentences(held_out, tokenizer, 5)
    for (sentence, word), guesses in zip(sentences, fill(export, [s for s, _ in sentences]), strict=True):
        print(f"\n  {sentence}\n    was: {word}; filled in: {guesses}")
    print(f"\nrun folder: {config.run}", flush=True)


def fill(folder: Path, sentences: list[str]) -> list[str]:
    """The three likeliest words for each [MASK], as text."""
    if not sentences:
        return []
    best = FillMask.from_pretrained(folder)(sentences, top_k=3)
    return [", ".join(f"{token} {probability:.0%}" for token, probability in row) for row in best]


def masked_sentences(documents: Sequence[Document], tokenizer: BertTokenizer, count: int) -> list[tuple[str, str]]:
    """Held-out sentences with one word masked, and that word: the same ones each time, spread over the documents."""
    known = tokenizer.backend.get_vocab()
    found = []
    for document in documents:
        for sentence in document:
            words = sentence.split(" ")
            at = [i for i, word in enumerate(words[:-1]) if i > 1 and len(word) > 2 and word in known]
            if 8 <= len(words) <= 20 and at:
                i = at[len(at) // 2]
                found.append((" ".join([*words[:i], "[MASK]", *words[i + 1 :]]), words[i]))
                break
    return found[:: max(1, len(found) // count)][:count]
