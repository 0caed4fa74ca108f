"""Hugging Face's BERT tensors <-> our parameters: one table of names for all readers and writers, strict both ways."""

import logging
from collections.abc import Iterable
from typing import Any

from transformer_jax.checkpoints import to_float32
from transformer_jax.checks import printed, require
from transformer_jax.names import Flat, Shapes, checked_arrays, drop_copies, from_torch, rows_of, to_torch

log = logging.getLogger(__name__)

ROOT = "bert/"  # what stands in front of the paths of a BERT below a head, and as "bert." in front of their names
# Our path -> Hugging Face's names, see `transformer_jax.names`.
NAMES: dict[str, tuple[str, ...]] = {
    "embeddings/word/embedding": ("embeddings.word_embeddings.weight",),
    "embeddings/position/embedding": ("embeddings.position_embeddings.weight",),
    "embeddings/token_type/embedding": ("embeddings.token_type_embeddings.weight",),
    "embeddings/norm/scale": ("embeddings.LayerNorm.weight",),
    "embeddings/norm/bias": ("embeddings.LayerNorm.bias",),
    "encoder/layer_{i}/attention/qkv/kernel": (
        "encoder.layer.{i}.attention.self.query.weight",
        "encoder.layer.{i}.attention.self.key.weight",
        "encoder.layer.{i}.attention.self.value.weight",
    ),
    "encoder/layer_{i}/attention/qkv/bias": (
        "encoder.layer.{i}.attention.self.query.bias",
        "encoder.layer.{i}.attention.self.key.bias",
        "encoder.layer.{i}.attention.self.value.bias",
    ),
    "encoder/layer_{i}/attention/out/kernel": ("encoder.layer.{i}.attention.output.dense.weight",),
    "encoder/layer_{i}/attention/out/bias": ("encoder.layer.{i}.attention.output.dense.bias",),
    "encoder/layer_{i}/attention_norm/scale": ("encoder.layer.{i}.attention.output.LayerNorm.weight",),
    "encoder/layer_{i}/attention_norm/bias": ("encoder.layer.{i}.attention.output.LayerNorm.bias",),
    "encoder/layer_{i}/mlp/up/kernel": ("encoder.layer.{i}.intermediate.dense.weight",),
    "encoder/layer_{i}/mlp/up/bias": ("encoder.layer.{i}.intermediate.dense.bias",),
    "encoder/layer_{i}/mlp/down/kernel": ("encoder.layer.{i}.output.dense.weight",),
    "encoder/layer_{i}/mlp/down/bias": ("encoder.layer.{i}.output.dense.bias",),
    "encoder/layer_{i}/mlp_norm/scale": ("encoder.layer.{i}.output.LayerNorm.weight",),
    "encoder/layer_{i}/mlp_norm/bias": ("encoder.layer.{i}.output.LayerNorm.bias",),
    "pooler/kernel": ("pooler.dense.weight",),
    "pooler/bias": ("pooler.dense.bias",),
    "predictions/transform/kernel": ("cls.predictions.transform.dense.weight",),
    "predictions/transform/bias": ("cls.predictions.transform.dense.bias",),
    "predictions/norm/scale": ("cls.predictions.transform.LayerNorm.weight",),
    "predictions/norm/bias": ("cls.predictions.transform.LayerNorm.bias",),
    "predictions/bias": ("cls.predictions.bias",),
    "predictions/decoder/embedding": ("cls.predictions.decoder.weight",),
    "next_sentence/kernel": ("cls.seq_relationship.weight",),
    "next_sentence/bias": ("cls.seq_relationship.bias",),
    "classifier/kernel": ("classifier.weight",),
    "classifier/bias": ("classifier.bias",),
    "qa_outputs/kernel": ("qa_outputs.weight",),
    "qa_outputs/bias": ("qa_outputs.bias",),
    "intent_classifier/kernel": ("intent_classifier.weight",),
    "intent_classifier/bias": ("intent_classifier.bias",),
    "slot_classifier/kernel": ("slot_classifier.weight",),
    "slot_classifier/bias": ("slot_classifier.bias",),
}
# Parts that a file may lack altogether, or have in vain, and how Hugging Face's names for them begin.
HEADS = {
    "pooler": "pooler.",
    "predictions": "cls.predictions.",
    "next_sentence": "cls.seq_relationship.",
    "classifier": "classifier.",
    "qa_outputs": "qa_outputs.",
    "intent_classifier": "intent_classifier.",
    "slot_classifier": "slot_classifier.",
}
# Copies of other tensors, and a table of constants.
DECODER, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
TIED = {DECODER: "embeddings.word_embeddings.weight", DECODER_BIAS: "cls.predictions.bias"}
IGNORED = "embeddings.position_ids"


# --- the two directions ------------------------------------------------------------------------------------------


def from_hugging_face(tensors: Flat, shapes: Shapes, source: str, anew: Iterable[str] = ()) -> tuple[Flat, list[str]]:
    """Hugging Face's tensors -> path -> float32 array, and the heads that are absent from them.

    Args:
        tensors: by Hugging Face's names, with or without "bert.", with LayerNorm's old gamma and beta or new names.
        shapes: of the parameters that are wanted, by path.
        source: where the tensors come from, for messages.
        anew: parts that are left out on both sides.

    Raises:
        ValueError: missing or unexpected names, wrong shapes, tied tensors that differ, or weights that are not
            floating-point numbers, not finite, or too large for float32. It names them.
    """
    tensors = _canonical_names(tensors, source)
    tensors.pop(IGNORED, None)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(HEADS[p] for p in anew))}
    rows = rows_of(NAMES, shapes, ROOT)
    absent = [
        part
        for part, prefix in HEADS.items()
        if part not in anew and of_parts(shapes, [part]) and not any(name.startswith(prefix) for name in tensors)
    ]
    without = of_parts(shapes, [*absent, *anew])
    rows = {path: names for path, names in rows.items() if path not in without}
    wanted = {name for names in rows.values() for name in names}
    unused = tuple(prefix for part, prefix in HEADS.items() if not of_parts(shapes, [part]))
    left_out = sorted(name for name in tensors.keys() - wanted if name.startswith(unused))
    if left_out:
        log.info("%s: left out %s", source, ", ".join(left_out))
    tensors = to_float32({name: tensor for name, tensor in tensors.items() if name not in left_out}, source)
    _resolve_tied(tensors, wanted, source)
    return from_torch(tensors, rows, shapes, source), absent


def to_hugging_face(params: dict[str, Any], shapes: Shapes) -> Flat:
    """Parameters, stacked or not -> float32 tensors by Hugging Face's names.

    Raises:
        ValueError: names or shapes are not exactly those of `shapes`, or parameters are not floating-point numbers
            or not finite. It names them.
    """
    rows = rows_of(NAMES, shapes, ROOT)
    for path in rows:
        if path.startswith(ROOT):
            rows[path] = tuple(f"bert.{name}" for name in rows[path])
    tensors = to_torch(checked_arrays(params, shapes), rows)
    if DECODER in tensors:  # an untied decoder reads a bias of its own
        tensors[DECODER_BIAS] = tensors[TIED[DECODER_BIAS]].copy()
    return tensors


def _canonical_names(tensors: Flat, source: str) -> Flat:
    out: Flat = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("bert.")
        short = short.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        require(short not in out, f"{source} has two tensors for {printed(short)}")
        out[short] = tensor
    return out


def _resolve_tied(tensors: Flat, wanted: set[str], source: str) -> None:
    """Drops copies of tied tensors, or puts one in the place of an original that is missing."""
    if DECODER in wanted and DECODER_BIAS in tensors:  # untied: PyTorch adds this one, whatever the other is
        tensors[TIED[DECODER_BIAS]] = tensors.pop(DECODER_BIAS)
    if "cls.predictions.bias" in wanted:
        copies = {copy: original for copy, original in TIED.items() if copy not in wanted}
        reason = "but BERT's masked-LM head shares them (unless config.json says tie_word_embeddings false)"
        drop_copies(tensors, copies, source, reason)


def of_parts(shapes: Iterable[str], parts: Iterable[str]) -> set[str]:
    """The paths that belong to the parts of those names ("pooler", "classifier" ...)."""
    return {path for path in shapes if path.removeprefix(ROOT).split("/")[0] in parts}
