"""Our Transformer -> a Marian in Hugging Face's layout, for PyTorch and CTranslate2; see `transformer_jax.marian`."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from transformer_jax.checkpoints import shapes_by_name, write_files
from transformer_jax.checks import require, shown
from transformer_jax.config import TransformerConfig
from transformer_jax.decoding_defaults import DecodingDefaults, decoding_file
from transformer_jax.layers import logical_axes
from transformer_jax.marian import (
    BIAS,
    DECODER_POSITIONS,
    EPSILON,
    FORBIDDEN,
    SHARED,
    SOURCE,
    TARGET,
    config_to_json,
    names_of,
    only_starts,
    target_path,
)
from transformer_jax.names import Flat, checked_arrays, to_torch
from transformer_jax.positions import sinusoidal_positions
from transformer_jax.seq2seq import Transformer
from transformer_jax.tokenizer import MarianTokenizer, check_tokenizer, pieces_of


def save_marian(
    folder: str | Path,
    model: Transformer,
    params: Mapping[str, Any],
    tokenizer: Any,
    decoding: DecodingDefaults | None = None,
) -> None:
    """Writes a folder that Hugging Face's MarianMTModel and MarianTokenizer read, and CTranslate2's converter.

    Logits are the same, and ids too. Sinusoids that are interleaved become halves by reordering the width. A vocabulary
    of SentencePiece gets one more token, Marian's `<pad>` in the last place: it starts the decoder as the model's own
    start does, and its logit forbids it. A model with a MarianTokenizer is written as it is.

    Args:
        params: in the canonical layout or in that of `scan_layers`.
        tokenizer: a `sentencepiece.SentencePieceProcessor` or a MarianTokenizer.
        decoding: what is written to generation_config.json; by default 4 beams up to the model's `max_length`.

    Raises:
        ValueError: the model is not made like a Marian, the parameters are not the model's or not finite, or the
            tokenizer is another kind or not that of the model. Nothing is written.
    """
    folder, config = Path(folder), model.config
    _refuse_others(config)
    check_tokenizer(tokenizer, config)
    flat = checked_arrays(params, shapes_by_name(model.parameter_shapes(), "/"))
    if config.positions == "interleaved":
        flat = _in_halves(model, flat)
    if not isinstance(tokenizer, MarianTokenizer):
        tokenizer, config, flat = _with_padding(tokenizer, config, flat)
    decoding = decoding or DecodingDefaults(
        num_beams=4, max_length=config.max_length, forced_eos_token_id=config.eos_id, bad_words_ids=((config.pad_id,),)
    )
    files = tokenizer.files() | decoding_file(decoding, config)
    files["config.json"] = (json.dumps(config_to_json(config), indent=2) + "\n").encode()
    files["model.safetensors"] = safetensors.numpy.save(_tensors(config, flat), metadata={"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, files)


def _refuse_others(config: TransformerConfig) -> None:
    """Raises ValueError for what no Marian is, and warns of what becomes a little different."""
    heads = {config.num_heads, config.stack("decoder").num_heads}
    fits = {
        "norm": config.norm == "post",
        "embeddings": config.embeddings != "normalised",
        "positions": config.positions != "learned",
        "attention_bias": config.attention_bias,
        "head_dim": all(config.head_dim in (None, config.features / count) for count in heads),
        "key_dim": config.key_dim in (None, config.head_dim, config.features / config.num_heads),
        "encoder_start_id": config.encoder_start_id is None,
    }
    wrong = [f"{name} {shown(getattr(config, name))}" for name, right in fits.items() if not right]
    require(
        not wrong,
        f"this model cannot be written as a Marian, which has no {' and no '.join(wrong)}: train one like "
        "TransformerConfig.base, with norm='post', positions='halves' or 'interleaved' and embeddings='scaled'",
    )
    if config.norm_epsilon != EPSILON:
        warnings.warn(
            f"a Marian's norm_epsilon is {EPSILON}, not {config.norm_epsilon}: logits will differ a little",
            stacklevel=3,
        )


def _in_halves(model: Transformer, flat: Flat) -> Flat:
    """The same model over sinusoids in halves: all sines of the width in front of all cosines, in every parameter."""
    unrolled = model.clone(config=dataclasses.replace(model.config, scan_layers=False))
    ids = jnp.zeros((1, 1), jnp.int32)
    axes = flax.traverse_util.flatten_dict(logical_axes(unrolled, ids, ids), sep="/")
    order_D = np.arange(model.config.features).reshape(-1, 2).T.ravel()
    for path, names in axes.items():
        if "embed" in names:
            flat[path] = np.take(flat[path], order_D, axis=names.index("embed"))
    return flat


def _with_padding(
    processor: Any, config: TransformerConfig, flat: Flat
) -> tuple[MarianTokenizer, TransformerConfig, Flat]:
    """A model of a SentencePiece vocabulary with Marian's padding behind it, which starts it as its own start does."""
    import sentencepiece

    known = isinstance(processor, sentencepiece.SentencePieceProcessor)
    require(known, f"a Marian needs a SentencePieceProcessor or a MarianTokenizer, not a {type(processor).__name__}")
    rows, more, words, pad = config.vocab_size, config.target_vocab_size, processor.vocab_size(), "<pad>"
    require(more == rows, f"one SentencePiece model is not that of {rows} and {more} tokens: give a MarianTokenizer")
    fits = processor.eos_id() == config.eos_id
    require(fits, f"eos_id of the tokenizer is {processor.eos_id()}, but that of the model {config.eos_id}")
    names = [*pieces_of(processor), *[pad] * (rows - words)]
    names = [f"<unused{id_}>" if name == pad else name for id_, name in enumerate(names)]
    settings = {
        "eos_token": names[config.eos_id],
        "unk_token": names[processor.unk_id()],
        "pad_token": pad,
        "model_max_length": config.max_length,
    }
    vocab = {name: id_ for id_, name in enumerate([*names, pad])}
    require(
        len(vocab) == rows + 1, "the SentencePiece model has a piece like <unused0>, as rows without one are called"
    )
    tokenizer = MarianTokenizer(processor, processor, vocab, settings=settings)

    longer = dict(flat)
    for path in ("embedding/embedding", "decoder_embedding/embedding", "lm_head/embedding"):
        if path in flat:
            first = flat[path][config.decoder_start_id] if path == target_path(config) else 0 * flat[path][0]
            longer[path] = np.concatenate([flat[path], first[None]])
    longer[BIAS] = np.append(flat.get(BIAS, np.zeros(rows, np.float32)), np.float32(FORBIDDEN))
    own = None if config.decoder_vocab_size is None else rows + 1
    config = dataclasses.replace(config, vocab_size=rows + 1, decoder_vocab_size=own, final_logits_bias=True)
    return tokenizer, dataclasses.replace(config, pad_id=rows, decoder_start_id=rows), longer


def _tensors(config: TransformerConfig, flat: Flat) -> Flat:
    """Hugging Face's tensors by name."""
    start, path, moved = config.decoder_start_id, target_path(config), {}
    if only_starts(flat, config) and flat[path][start].any():
        table_PD = sinusoidal_positions(config.max_length, config.features, "halves")
        table_PD[0] += flat[path][start] * np.float32(config.features**0.5 if config.embeddings == "scaled" else 1.0)
        moved[DECODER_POSITIONS] = table_PD
        flat = flat | {path: flat[path].copy()}
        flat[path][start] = 0.0
    tensors = to_torch(flat, names_of(config, flat)) | moved
    bias_V = tensors.pop(BIAS, np.zeros(config.target_vocab_size, np.float32))
    tensors[BIAS] = bias_V[None]
    if config.share_encoder_decoder_embeddings and not config.tie_word_embeddings:  # see _with_one_table_each
        tensors[SOURCE] = tensors[TARGET] = tensors[SHARED]
    return tensors
