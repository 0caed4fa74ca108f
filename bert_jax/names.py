"""Hugging Face's BERT tensors <-> our parameters: one table of names for all readers and writers, strict both ways."""

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from transformer_jax.checkpoints import to_float32
from transformer_jax.checks import listed, printed, require

log = logging.getLogger(__name__)

# Our path -> Hugging Face's names without the prefix "bert."; {i} counts layers. Several names are split along
# the axis that fuses them (queries, keys, values).
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

Flat = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


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
    rows = dict(_table(shapes))
    absent = [
        part
        for part, prefix in HEADS.items()
        if part not in anew and of_parts(shapes, [part]) and not any(name.startswith(prefix) for name in tensors)
    ]
    without = of_parts(shapes, [*absent, *anew])
    wanted = {name for path, names in rows.items() if path not in without for name in names}
    unused = tuple(prefix for part, prefix in HEADS.items() if not of_parts(shapes, [part]))
    left_out = sorted(name for name in tensors.keys() - wanted if name.startswith(unused))
    if left_out:
        log.info("%s: left out %s", source, ", ".join(left_out))
    tensors = to_float32({name: tensor for name, tensor in tensors.items() if name not in left_out}, source)
    _resolve_tied(tensors, wanted, source)
    missing, unexpected = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
    require(not missing, f"{source} lacks {len(missing)} tensors: {listed(missing)}")
    require(not unexpected, f"{source} has {len(unexpected)} unexpected tensors: {listed(unexpected)}")
    flat, wrong = {}, []
    for path, names in rows.items():
        if names[0] not in wanted:
            continue
        for name in names:
            right = _torch_shape(path, shapes[path], len(names))
            if tensors[name].shape != right:
                wrong.append(f"{name} is {tensors[name].shape}, not {right}")
        if not wrong:
            flat[path] = _from_torch(path, [tensors[name] for name in names], shapes[path])
    require(not wrong, f"{source} does not fit its config.json: {listed(wrong)}")
    return flat, absent


def to_hugging_face(params: dict[str, Any], shapes: Shapes) -> Flat:
    """Parameters in the canonical layout -> float32 tensors by Hugging Face's names.

    Raises:
        ValueError: names or shapes are not exactly those of `shapes`, or parameters are not floating-point numbers
            or not finite. It names them.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    found = {path: tuple(np.shape(leaf)) for path, leaf in flat.items()}
    wrong = sorted(path for path in found.keys() | shapes.keys() if found.get(path) != shapes.get(path))
    names_of_wrong = listed([f"{p} is {found.get(p, 'missing')}, not {shapes.get(p, 'known')}" for p in wrong])
    require(not wrong, f"the parameters are not those of this model: {names_of_wrong}")
    arrays = to_float32({path: np.asarray(jax.device_get(leaf)) for path, leaf in flat.items()}, "the parameters")
    tensors = {}
    for path, names in _table(shapes):
        prefix = "bert." if path.startswith("bert/") else ""
        for name, tensor in zip(names, _to_torch(path, arrays[path], len(names)), strict=True):
            tensors[prefix + name] = np.ascontiguousarray(tensor)
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
    for copy, original in TIED.items():
        if copy not in tensors or copy in wanted or "cls.predictions.bias" not in wanted:
            continue
        duplicate = tensors.pop(copy)
        require(
            np.array_equal(tensors.setdefault(original, duplicate), duplicate),
            f"{source}: {copy} differs from {original}, but BERT's masked-LM head shares them (unless config.json says "
            "tie_word_embeddings false)",
        )


def _table(shapes: Shapes) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each path of a model with Hugging Face's names for it, the prefix "bert." left out."""
    for path in shapes:
        parts = path.removeprefix("bert/").split("/")
        layer = next((part.removeprefix("layer_") for part in parts if part.startswith("layer_")), "")
        pattern = "/".join("layer_{i}" if part.startswith("layer_") else part for part in parts)
        yield path, tuple(name.replace("{i}", layer) for name in NAMES[pattern])


def of_parts(shapes: Iterable[str], parts: Iterable[str]) -> set[str]:
    """The paths that belong to the parts of those names ("pooler", "classifier" ...)."""
    return {path for path in shapes if path.removeprefix("bert/").split("/")[0] in parts}


# --- arrays ------------------------------------------------------------------------------------------------------

# PyTorch keeps matrices as [out, in]; ours are [in ..., out ...] with heads on an axis of their own. Only the
# projection behind attention has two input axes, [H, K, D].


def _matrix_shape(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    inputs = 2 if path.endswith("attention/out/kernel") else 1
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def _torch_shape(path: str, shape: tuple[int, ...], names: int) -> tuple[int, ...]:
    """The shape of each of the `names` tensors that a parameter is made of."""
    if path.endswith("kernel"):
        rows, columns = _matrix_shape(path, shape)
        return (columns // names, rows)
    return (math.prod(shape) // names,) if names > 1 else shape


def _from_torch(path: str, tensors: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """PyTorch's tensors -> the parameter."""
    parts = [tensor.T if path.endswith("kernel") else tensor for tensor in tensors]
    return np.concatenate(parts, axis=-1).reshape(shape)


def _to_torch(path: str, array: np.ndarray, names: int) -> list[np.ndarray]:
    """The parameter -> PyTorch's tensors."""
    if path.endswith("kernel"):
        return np.split(array.reshape(_matrix_shape(path, array.shape)).T, names)
    return np.split(array.reshape(-1), names) if names > 1 else [array]
