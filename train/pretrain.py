"""Pretraining of BERT: masked language modelling and next-sentence prediction (Devlin et al. 2019, section 3.1)."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import BertConfig, BertForMaskedLM, BertForPreTraining, BertTokenizer, FillMask
from bert_jax.vocabulary import write_vocabulary
from train.data import python_docs
from train.data.batches import ExampleBatches, Examples
from train.data.documents import Document, hold_out, read_documents
from train.data.fingerprint import fingerprint, fingerprint_of
from train.data.pretraining import SentencePairs, SentenceRows, TokenCorpus, can_pair, tokenize_corpus
from train.errors import InputError, blaming
from train.loop import (
    CheckpointConfig,
    EvalConfig,
    JobConfig,
    Task,
    nearest_preset,
    per_epoch,
    say_verdict,
    train,
    with_learning_rate,
)
from train.objectives import PretrainObjective
from train.optimizer import OptimizerConfig
from train.options import Count, Range, check_options, refuse_idle
from train.run import Run, exporting
from train.sharding import check_rows, gather, make_mesh, put_batch
from train.start import UNNAMED, BertStart, load_bert
from train.state import evaluate, make_eval_step
from train.terminal import left_out, say, say_table
from transformer_jax import stack_layers

EVAL_BATCHES = 16
# Root mean square of a new model's positions, ten times the words': smaller sinusoids are drowned by the first hundred
# updates (measured, docs/pretraining.md).
POSITION_RANGE = 0.2
Model = BertForPreTraining | BertForMaskedLM


@dataclasses.dataclass(frozen=True)
class PretrainConfig(JobConfig):
    """Pretrain BERT on documents; with no option, on the prose that every Python carries."""

    run: Path = Path("runs/pretrain")
    data: tuple[str, ...] = ()
    """Text files (a paragraph a line, blank line between documents; .gz too), JSONL files, or tfds:NAME."""
    preset: Literal["tiny", "mini", "small", "medium", "base", "large"] = "tiny"
    """Size of the model."""
    model: str = ""
    """Folder or hub name of a BERT to go on from, with its vocabulary, such as the export of a run."""
    steps: Count = 1600
    batch_size: Annotated[int, Range(1, 2**20)] = 64
    """Rows of a batch over all devices."""
    max_length: Annotated[int, Range(5, 2**16)] = 64
    """Tokens of a row."""
    field: str = "text"
    """Field of a JSONL or TFDS record that holds the text."""
    tokenizer: str = ""
    """Folder or hub name of a WordPiece vocabulary; by default one is trained on the training data."""
    vocab_size: Annotated[int, Range(16, 10_000_000)] = 2048
    """Size of a vocabulary that is trained."""
    whole_word: bool = False
    """Mask all pieces of a word together."""
    next_sentence: Literal["on", "off"] = "on"
    """Whether next sentences are predicted too; off: rows of whole sentences of one document (Liu et al. 2019)."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(name="muon", schedule="cosine", warmup_steps=100)
    )
    eval: EvalConfig = dataclasses.field(default_factory=lambda: EvalConfig(every=400))
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=lambda: CheckpointConfig(every=400))
    learning_rates: ClassVar[dict[str, float]] = {
        "tiny": 5e-3, "mini": 1e-3, "small": 5e-4, "medium": 3e-4, "base": 1e-4, "large": 1e-4
    }  # fmt: skip


def main(config: PretrainConfig) -> None:
    """Runs the job: trains, evaluates on held-out documents, exports, and fills in five held-out sentences."""
    check_options(config)
    if config.model:
        refuse_idle(config, ("preset", "tokenizer", "vocab_size"), f"beside --model {config.model}, which decides it")
    if config.tokenizer:
        refuse_idle(config, ("vocab_size",), f"beside --tokenizer {config.tokenizer}, which decides it")
    if not config.data:
        refuse_idle(config, ("field",), "without --data")
        refuse_idle(config.eval, ("data",), "without --data", "--eval.")
    mesh = make_mesh(config.mesh)
    check_rows(config.batch_size, config.accumulate, mesh)
    start = load_bert(config.model) if config.model else None
    widths = {name: BertConfig.preset(name).hidden_size for name in PretrainConfig.learning_rates}
    config = with_learning_rate(config, nearest_preset(start.config.hidden_size, widths) if start else config.preset)
    with Run("pretrain", config) as run:
        corpus = load_corpus(config)
        tokenizer = load_tokenizer(config, start, corpus.documents, run.going_on)
        data = make_data(config, corpus, tokenizer)
        model, params, notes = make_model(config, start, tokenizer, data.next_sentence)
        batches = make_batches(config, data.examples, config.seed, config.steps)
        words = fingerprint_of("the run's vocabulary", [[tokenizer.backend.to_str()]])
        run.begin({**corpus.fingerprint, **words, **(start.fingerprint if start else {})})
        if jax.process_index() == 0:
            tokenizer.save_pretrained(config.run / "tokenizer")
        say_table(f"pretrain: BERT {config.model or config.preset}", [*corpus.notes, *data.notes, *notes])

        eval_step = make_eval_step(
            objective := PretrainObjective(model, tokenizer, config.max_length, config.whole_word)
        )

        def evaluate_held_out(params: Any) -> dict[str, Any]:
            rows = (put_batch(data.held_out[k], mesh) for k in range(len(data.held_out)))
            return evaluate(eval_step, params, rows) | {"eval/unigram_loss": data.entropy}

        ids = jax.ShapeDtypeStruct((config.batch_size, config.max_length), jnp.int32)
        task = Task("pretrain", model, (ids,), objective, batches, evaluate_held_out, "eval/mlm_loss", params)
        epoch = max(1, len(data.examples) // config.batch_size)
        state, row = train(task, per_epoch(config, epoch), mesh)
        finish(config, model, tokenizer, state.evaluated, corpus.held_out, row)


# --- data --------------------------------------------------------------------------------------------------------


class Corpus(NamedTuple):
    """Training and held-out documents, what to say about them, and the fingerprint of what they were read from."""

    documents: Sequence[Document]
    held_out: Sequence[Document]
    notes: list[tuple[str, str]]
    fingerprint: dict[str, str]


def load_corpus(config: PretrainConfig) -> Corpus:
    """Reads --data, and --eval.data or a part of --data that is held out."""
    if not config.data:
        train_side, held_out = python_docs.python_documents()
        digest = fingerprint_of(python_docs.NAME, [*train_side, *held_out])
        notes = [("data", f"{python_docs.NAME}: {counted(train_side)}"), ("held out", counted(held_out))]
        return Corpus(train_side, held_out, notes, digest)
    read = read_documents(config.data, config.field)
    digest = fingerprint(config.data)
    notes = [("data", f"{', '.join(config.data)}: {counted(read.documents)}"), *left_out("", read.left_out)]
    if config.eval.data:
        other = read_documents(config.eval.data, config.field, option="--eval.data")
        digest |= fingerprint(config.eval.data, option="--eval.data")
        notes.append(("held out", f"{', '.join(config.eval.data)}: {counted(other.documents)}"))
        return Corpus(read.documents, other.documents, [*notes, *left_out("held out: ", other.left_out)], digest)
    train_side, held_out, note = hold_out(read.documents)
    return Corpus(train_side, held_out, [*notes, ("held out", f"{note}: {counted(held_out)}")], digest)


def counted(documents: Sequence[Document]) -> str:
    return f"{len(documents):,} documents of {sum(map(len, documents)):,} sentences"


def load_tokenizer(
    config: PretrainConfig, start: BertStart | None, documents: Sequence[Document], going_on: bool
) -> BertTokenizer:
    """The run's own vocabulary if it goes on, the one that was named, or one trained on the training documents."""
    own = config.run / "tokenizer"
    if going_on and (own / "vocab.txt").exists():
        with blaming(f"--run {config.run}"):
            return BertTokenizer.from_pretrained(own)
    if start:
        return start.tokenizer
    if config.tokenizer:
        with blaming(f"--tokenizer {config.tokenizer}"):
            tokenizer = BertTokenizer.from_pretrained(config.tokenizer)
            write_vocabulary(tokenizer.backend.get_vocab())  # now, not when the run has begun
            return tokenizer
    with blaming("--data"):  # the size is in its range
        return BertTokenizer.train((s for document in documents for s in document), config.vocab_size)


class Data(NamedTuple):
    """Examples to train on, held-out batches, their unigram entropy in nats, and what to say about them."""

    examples: Examples
    held_out: ExampleBatches
    entropy: float
    next_sentence: bool
    notes: list[tuple[str, str]]


def make_data(config: PretrainConfig, corpus: Corpus, tokenizer: BertTokenizer) -> Data:
    """Tokens and examples of both sides; without next sentences where either side cannot make pairs."""
    tokens = tokenize_corpus(corpus.documents, tokenizer.backend)
    held_out_tokens = tokenize_corpus(corpus.held_out, tokenizer.backend)
    notes = vocabulary_notes(config, tokenizer)
    held_out_option = "--eval.data" if config.eval.data else "--data"
    notes += unknown_notes(tokens, tokenizer, "--data", "training")
    notes += unknown_notes(held_out_tokens, tokenizer, held_out_option, "held-out")
    dropped = tokens.dropped + held_out_tokens.dropped
    notes += left_out("", {"sentences that have no token": dropped})
    next_sentence = config.next_sentence == "on"
    if next_sentence and not (can_pair(tokens) and can_pair(held_out_tokens)):
        next_sentence = False
        notes.append(("next sentence", "not trained: both sides need two documents, one of them with two sentences"))
    examples = make_examples(config, tokens, tokenizer, next_sentence, config.seed, "--data")
    held_out = make_examples(config, held_out_tokens, tokenizer, next_sentence, 1, held_out_option)
    count = min(EVAL_BATCHES, max(1, len(held_out) // config.batch_size))
    rows = count * config.batch_size
    notes += [
        ("examples", f"{len(examples):,} rows of up to {config.max_length} tokens"),
        (
            "evaluation",
            f"{count} batches of {config.batch_size}: "
            + (
                f"{rows:,} of {len(held_out):,} held-out rows"
                if rows <= len(held_out)
                else f"{len(held_out)} rows, some twice"
            ),
        ),
    ]
    held_out_batches = make_batches(config, held_out, 0, count, held_out_option)
    return Data(examples, held_out_batches, unigram_entropy(held_out_tokens), next_sentence, notes)


def unknown_notes(corpus: TokenCorpus, tokenizer: BertTokenizer, option: str, side: str) -> list[tuple[str, str]]:
    """The share of tokens that the vocabulary does not know. Raises InputError where there are no others."""
    known = ~np.isin(corpus.tokens, tokenizer.special_ids)
    if not known.any():
        raise InputError(f"{option}: the vocabulary knows no word of the {side} text; take a --tokenizer that does")
    share = np.mean(corpus.tokens == tokenizer.unk_id)
    return [("unknown", f"{share:.2%} of the {side} tokens are [UNK]")] if share else []


def vocabulary_notes(config: PretrainConfig, tokenizer: BertTokenizer) -> list[tuple[str, str]]:
    source = config.model or config.tokenizer
    if source:
        return [("vocabulary", f"{tokenizer.vocab_size:,} words of {source}")]
    less = (
        ""
        if tokenizer.vocab_size >= config.vocab_size
        else f"; --vocab-size {config.vocab_size:,}: the text gives no more"
    )
    return [("vocabulary", f"{tokenizer.vocab_size:,} words learned from the training data{less}")]


def make_examples(
    config: PretrainConfig, corpus: TokenCorpus, tokenizer: BertTokenizer, next_sentence: bool, seed: int, option: str
) -> Examples:
    """Pairs of sentences, or rows of whole sentences where next sentences are not predicted."""
    ids = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    if next_sentence:
        return SentencePairs(corpus, max_length=config.max_length, **ids, seed=seed, option=option)
    return SentenceRows(corpus, max_length=config.max_length, **ids, option=option)


def make_batches(
    config: PretrainConfig, examples: Examples, seed: int, steps: int, option: str = "--data"
) -> ExampleBatches:
    return ExampleBatches(
        examples,
        batch_size=config.batch_size,
        seed=seed,
        steps=steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        option=option,
    )


def unigram_entropy(corpus: TokenCorpus) -> float:
    """Entropy of the corpus's own token distribution in nats: no predictor without context does better on it."""
    counts = np.bincount(corpus.tokens)
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log(p)))


# --- model -------------------------------------------------------------------------------------------------------


def make_model(
    config: PretrainConfig, start: BertStart | None, tokenizer: BertTokenizer, next_sentence: bool
) -> tuple[Model, Any, list[tuple[str, str]]]:
    """The model, what its parameters start from (None: at random), and what to say about it."""
    make: Any = BertForPreTraining if next_sentence else BertForMaskedLM
    how: dict[str, Any] = {"scan_layers": config.scan_layers, "remat": config.remat}
    params, notes = None, []
    if start is None:
        how["position_range"] = POSITION_RANGE
        bert_config = BertConfig.preset(config.preset, vocab_size=tokenizer.vocab_size, **how)
    else:
        bert_config = dataclasses.replace(start.config, **UNNAMED, **how)
        with blaming(f"--model {config.model}"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            params = make.from_pretrained(config.model)[1]
        notes = [*start.notes, *(("model", str(warning.message)) for warning in caught)]
        params = stack_layers(params) if config.scan_layers else params
    if config.max_length > bert_config.max_position_embeddings:
        raise InputError(f"--max-length {config.max_length}: BERT has {bert_config.max_position_embeddings} positions")
    return make(bert_config, dtype=jnp.dtype(config.dtype)), params, notes


# --- the end of a run --------------------------------------------------------------------------------------------


def finish(
    config: PretrainConfig,
    model: Model,
    tokenizer: BertTokenizer,
    params: Any,
    held_out: Sequence[Document],
    row: dict[str, Any],
) -> None:
    """Exports the model in Hugging Face's layout, says the held-out figures and fills in five sentences."""
    params = jax.tree.map(gather, params)
    if jax.process_index():
        return
    with exporting(config.run) as folder:
        model.save_pretrained(folder, params)
        tokenizer.save_pretrained(folder)
    gap = row["eval/unigram_loss"] - row["eval/mlm_loss"]
    say(f"held-out masked-LM loss {row['eval/mlm_loss']:.3f} nat, accuracy {row['eval/mlm_accuracy']:.1%}")
    where = f"{abs(gap):.3f} nat {'above' if gap >= 0 else 'below'} the loss"
    say(f"unigram entropy of the held-out tokens {row['eval/unigram_loss']:.3f} nat: {where}")
    if "eval/nsp_loss" in row:
        say(f"held-out next-sentence accuracy {row['eval/nsp_accuracy']:.1%}, loss {row['eval/nsp_loss']:.3f} nat")
    say_verdict(row["eval/mlm_loss"], model.config.vocab_size)
    sentences = masked_sentences(held_out, tokenizer, 5, model.config.max_position_embeddings)
    guessed = fill(config.run / "export", [sentence for sentence, _ in sentences])
    for (sentence, word), guesses in zip(sentences, guessed, strict=True):
        say(f"\n  {sentence}\n    was: {word}; filled in: {guesses}")
    say(f"\nrun folder: {config.run}")


def fill(folder: Path, sentences: list[str]) -> list[str]:
    """The three likeliest words for each [MASK], as text."""
    if not sentences:
        return []
    best = FillMask.from_pretrained(folder)(sentences, top_k=3)
    return [", ".join(f"{token} {probability:.0%}" for token, probability in row) for row in best]


def masked_sentences(
    documents: Sequence[Document], tokenizer: BertTokenizer, count: int, longest: int
) -> list[tuple[str, str]]:
    """Held-out sentences with one word masked, and that word: the same ones each time, spread over the documents."""
    known = tokenizer.backend.get_vocab()
    found = []
    for document in documents:
        for sentence in document:
            words = sentence.split(" ")
            at = [i for i, word in enumerate(words[:-1]) if i > 1 and len(word) > 2 and word in known]
            if 8 <= len(words) <= 20 and at:
                i = at[len(at) // 2]
                masked = " ".join([*words[:i], "[MASK]", *words[i + 1 :]])
                ids = tokenizer.encode([masked])[0].ids
                if ids.count(tokenizer.mask_id) == 1 and len(ids) <= longest:  # text on BERT has such words itself
                    found.append((masked, words[i]))
                    break
    return found[:: max(1, len(found) // count)][:count]
