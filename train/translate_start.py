"""What a Transformer's training starts from: the model that --model names, and the vocabulary of the run."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax import BertTokenizer, warm_start
from train.data.mixtures import tags_of
from train.data.parallel import Pair, train_sentencepiece
from train.errors import blaming
from train.terminal import left_out
from train.translate_corpus import Corpus
from transformer_jax import Transformer, TransformerConfig, Translator, unstack_layers
from transformer_jax.checkpoints import read_config
from transformer_jax.checks import shown
from transformer_jax.decoding_defaults import DecodingDefaults, decoding_of
from transformer_jax.marian import BIAS, FORBIDDEN
from transformer_jax.seq2seq import MODEL_TYPE
from transformer_jax.tags import check_tags, tag_ids
from transformer_jax.tokenizer import (
    FILES,
    JsonTokenizer,
    MarianTokenizer,
    load_tokenizer,
    pieces_of,
    save_tokenizer,
    target_encoder,
)


class Start(NamedTuple):
    """A model to go on from; the parameters have a dict per layer.

    Attributes:
        name: what --model says.
        decoding: what its folder says of decoding, as a Marian's does.
    """

    name: str
    model: Transformer
    params: dict[str, Any]
    processor: Any
    decoding: DecodingDefaults | None = None


def load_start(name: str, seed: int) -> Start | None:
    """What --model names, a Transformer, a Marian or a BERT; None without it.

    Raises:
        InputError: it is none of them, or its folder is wrong.
    """
    if not name:
        return None
    with blaming(f"--model {name}"):
        kind = read_config(name).get("model_type", "bert")
        if kind not in (MODEL_TYPE, "marian", "bert"):
            raise ValueError(
                f"its config.json says model_type {shown(kind)}, but needed is {MODEL_TYPE!r}, 'marian' or 'bert'"
            )
        if kind == "bert":
            model, params = warm_start(name, seed=seed)
            return Start(name, model, params, JsonTokenizer(BertTokenizer.from_pretrained(name).backend))
        translator = Translator.from_pretrained(name)
        model, params = with_allowed(translator.model, unstack_layers(translator.params))
        return Start(name, model, params, translator.tokenizer, decoding_of(name))


# --- tokens that are never put out ---------------------------------------------------------------------------------


def unspoken(config: TransformerConfig, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that no target has: tags, and the padding of a MarianTokenizer, which begins the decoder.

    Another tokenizer gets a padding of its own when it is written as a Marian, see `save_marian`.
    """
    if isinstance(tokenizer, JsonTokenizer):
        return ()
    if not isinstance(tokenizer, MarianTokenizer):
        return tuple(tag_ids(pieces_of(tokenizer)))
    padding = [config.pad_id] if config.pad_id == config.decoder_start_id else []
    return (*padding, *tag_ids(tokenizer.target_vocab))


def with_forbidden(
    config: TransformerConfig, params: Mapping[str, Any], ids: Sequence[int]
) -> tuple[TransformerConfig, dict[str, Any]]:
    """A model whose logits forbid these tokens, as that of a Marian must what it begins with."""
    if not ids:
        return config, dict(params)
    bias_V = np.array(params[BIAS] if config.final_logits_bias else np.zeros(config.target_vocab_size), np.float32)
    bias_V[list(ids)] = FORBIDDEN
    return dataclasses.replace(config, final_logits_bias=True), {**params, BIAS: bias_V}


def with_allowed(model: Transformer, params: Mapping[str, Any]) -> tuple[Transformer, dict[str, Any]]:
    """The same undone, while a model is trained: label smoothing would count what is forbidden as a great loss."""
    config = model.config
    bias_V = np.array(params[BIAS]) if config.final_logits_bias else np.zeros(1)
    if not (forbidden_V := bias_V <= FORBIDDEN / 2).any():
        return model, dict(params)
    bias_V[forbidden_V] = 0
    if bias_V.any():
        return model, {**params, BIAS: bias_V}
    rest = {name: value for name, value in params.items() if name != BIAS}
    return model.clone(config=dataclasses.replace(config, final_logits_bias=False)), rest


# --- the vocabulary ----------------------------------------------------------------------------------------------


def vocabulary_folder(run: Path) -> Path:
    """Where a run keeps its vocabulary."""
    return run / "tokenizer"


def load_vocabulary(
    run: Path,
    going_on: bool,
    start: Start | None,
    corpus: Corpus,
    held_out: str,
    size: int,
    target_size: int | None = None,
) -> tuple[Any, list[tuple[str, str]]]:
    """The run's own vocabulary if it goes on, that of --model, or one trained on the pairs; and what to say of it.

    Args:
        held_out: the option that held-out pairs come from.
        target_size: where targets have a vocabulary of their own.

    Raises:
        InputError: it lacks a tag of the corpus, or as `train_sentencepiece`.
    """
    if going_on and any((vocabulary_folder(run) / name).exists() for name in FILES):
        with blaming(f"--run {run}"):
            processor = load_tokenizer(vocabulary_folder(run))
        notes = [("vocabulary", f"{_sizes(processor)}, those of the run")]
    elif start:
        processor = start.processor
        notes = [("vocabulary", f"{_sizes(processor)} of {start.name}")]
    else:
        processor, missing = _train_vocabulary(corpus, size, target_size)
        notes = [("vocabulary", f"{_sizes(processor)} learned from the training pairs")]
        notes += left_out("vocabulary: ", missing)
    tags = sorted({*corpus.tags, *tags_of(corpus.held_out, held_out)})
    with blaming(f"--model {start.name}" if start else held_out):
        check_tags(processor, tags)
    if tags:
        notes.append(("tags", f"{', '.join(tags)}, a token each"))
    return processor, notes


def _train_vocabulary(corpus: Corpus, size: int, target_size: int | None) -> tuple[Any, dict[str, int]]:
    """A vocabulary of both sides, or one of each; and how many sentences it was not made from, and why."""
    if target_size is None:
        return train_sentencepiece(corpus.pairs, size, corpus.tags)
    source, missing = train_sentencepiece(((source,) for source, _ in corpus.pairs), size, corpus.tags)
    target, also = train_sentencepiece(
        ((target,) for _, target in corpus.pairs), target_size, (), "--target-vocab-size"
    )
    counts = {reason: missing.get(reason, 0) + also.get(reason, 0) for reason in {**missing, **also}}
    return MarianTokenizer.of_sentencepiece(source, target), counts


def _sizes(processor: Any) -> str:
    if isinstance(processor, MarianTokenizer) and processor.settings["separate_vocabs"]:
        return f"{processor.vocab_size():,} pieces for sources and {processor.target_vocab_size():,} for targets"
    return f"{processor.vocab_size():,} pieces"


def keep_vocabulary(run: Path, processor: Any) -> None:
    """Writes it into the run."""
    if jax.process_index() == 0:
        vocabulary_folder(run).mkdir(exist_ok=True)
        save_tokenizer(vocabulary_folder(run), processor)


def spelling_note(processor: Any, held_out: Sequence[Pair]) -> list[tuple[str, str]]:
    """How many held-out targets the vocabulary cannot give letter by letter, as one without capitals cannot."""
    encode = target_encoder(processor)
    lost = sum(processor.decode(encode(target)) != target for _, target in held_out)
    words = (
        f"{lost:,} of {len(held_out):,} held-out targets are not spelled with it as they are (capitals, spaces, ...)"
    )
    return [("vocabulary", f"{words}: scores count that")] if lost else []
