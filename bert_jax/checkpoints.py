"""Hugging Face's BERT files <-> our parameters: one table of names, strict both ways."""

import dataclasses
import json
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.typing import DTypeLike

from bert_jax.config import BertConfig
from bert_jax.hub import local_folder
from transformer_jax.checkpoints import read_config, read_tensors, to_float32, write_files
from transformer_jax.checks import listed, printed, require
from transformer_jax.stack import unstack_layers

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
    "next_sentence/kernel": ("cls.seq_relationship.weight",),
    "next_sentence/bias": ("cls.seq_relationship.bias",),
}
# Parts that a file may lack altogether, or have in vain, and how Hugging Face's names for them begin.
HEADS = {"pooler": "pooler.", "predictions": "cls.predictions.", "next_sentence": "cls.seq_relationship."}
# Heads of fine-tuned models: of no use to a model without them.
OTHER_HEADS = ("classifier.", "qa_outputs.")
# Copies of other tensors, and a table of constants.
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
IGNORED = "embeddings.position_ids"
FILES = ("config.json", "model.safetensors", "model.safetensors.index.json")

Flat = dict[str, np.ndarray]


class PretrainedModel(nn.Module):
    """A model over a BertConfig that can be read from a folder and written to one.

    Attributes:
        dtype: of the computation; logits are float32 in any case. Parameters are stored in `param_dtype`.
    """

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    # The rank of input_ids, [B, L] or [B, C, L].
    input_rank: ClassVar[int] = 2
    # Parts that have an output for each label, and the field of the configuration that names those.
    label_fields: ClassVar[dict[str, str]] = {}

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: DTypeLike = jnp.float32) -> tuple[Self, dict[str, Any]]:
        """Reads a folder in Hugging Face's layout, or a repository of the hub -> (model, float32 parameters).

        A head that the file does not have is initialised, and named in a warning; heads of the file that this
        class does not have are left out.

        Raises:
            ValueError: no such folder, a file is missing or broken, the configuration is not a BERT's, names or
                shapes in the file are not exactly what the configuration asks for, or tensors are not numbers
                that float32 can hold.
        """
        folder = local_folder(name, FILES)
        fields = read_config(folder)
        try:
            config = BertConfig.from_json(fields)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error
        model = cls(config, dtype)
        tensors = _read_tensors(folder)
        _check_depth(tensors, config.num_hidden_layers, folder)
        flat, absent = from_hugging_face(tensors, model.parameter_shapes(), str(folder))
        if absent:
            warnings.warn(
                f"{folder}: the file has no {' and no '.join(absent)}; {cls.__name__} initialised it at random, "
                f"to be trained: {', '.join(sorted(_of_parts(model.parameter_shapes(), absent)))}",
                stacklevel=2,
            )
            flat |= model.initial_parameters(absent)
        return model, flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")

    @nn.nowrap
    def save_pretrained(self, folder: str | Path, params: dict[str, Any]) -> None:
        """Writes config.json and model.safetensors (float32) for Hugging Face transformers; never half a file.

        Args:
            params: in the canonical layout or in that of `scan_layers`.

        Raises:
            ValueError: names or shapes are not those of this model, or parameters are not finite. Nothing is written.
        """
        folder = Path(folder)
        tensors = to_hugging_face(unstack_layers(params), self.parameter_shapes())
        config = {"architectures": [type(self).__name__], **self.config.to_json()}
        folder.mkdir(parents=True, exist_ok=True)
        weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        write_files(folder, {"model.safetensors": weights, "config.json": text.encode()})

    @nn.nowrap
    def example_ids(self) -> jax.Array:
        """The smallest input_ids, for `init`."""
        return jnp.zeros((1,) * self.input_rank, jnp.int32)

    @nn.nowrap
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Path ("bert/pooler/kernel") -> shape in the canonical layout. Nothing is computed."""
        # Scanned, one layer is traced and not all of them.
        scanned = self.clone(config=dataclasses.replace(self.config, scan_layers=True))
        tree = jax.eval_shape(scanned.init, jax.random.key(0), self.example_ids())["params"]
        flat = flax.traverse_util.flatten_dict(unstack_layers(tree), sep="/")
        return {path: leaf.shape for path, leaf in flat.items()}

    @nn.nowrap
    def initial_parameters(self, parts: list[str]) -> Flat:
        """Path -> freshly initialised parameters of the named parts alone, none of which is a layer's."""
        shallow = self.clone(config=dataclasses.replace(self.config, num_hidden_layers=1))

        def init(key: jax.Array) -> dict[str, jax.Array]:
            params = shallow.init(key, self.example_ids())["params"]
            flat = flax.traverse_util.flatten_dict(params, sep="/")
            return {path: flat[path] for path in _of_parts(flat, parts)}

        return jax.device_get(jax.jit(init)(jax.random.key(0)))


# --- the two directions ------------------------------------------------------------------------------------------


def from_hugging_face(tensors: Flat, shapes: dict[str, tuple[int, ...]], source: str) -> tuple[Flat, list[str]]:
    """Hugging Face's tensors -> path -> float32 array, and the heads that are absent from them.

    Args:
        tensors: by Hugging Face's names, with or without "bert.", with LayerNorm's old gamma and beta or new names.
        shapes: of the parameters that are wanted, by path.
        source: where the tensors come from, for messages.

    Raises:
        ValueError: missing or unexpected names, wrong shapes, tied tensors that differ, or weights that are not
            floating-point numbers, not finite, or too large for float32. It names them.
    """
    tensors = _canonical_names(tensors, source)
    tensors.pop(IGNORED, None)
    rows = {path: names for path, names in _table(shapes)}
    absent = [
        part
        for part, prefix in HEADS.items()
        if _of_parts(shapes, [part]) and not any(name.startswith(prefix) for name in tensors)
    ]
    without = _of_parts(shapes, absent)
    wanted = {name for path, names in rows.items() if path not in without for name in names}
    unused = tuple(prefix for part, prefix in HEADS.items() if not _of_parts(shapes, [part])) + OTHER_HEADS
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


def to_hugging_face(params: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Flat:
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
    return tensors


def _table(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each path of a model with Hugging Face's names for it, the prefix "bert." left out."""
    for path in shapes:
        parts = path.removeprefix("bert/").split("/")
        layer = next((part.removeprefix("layer_") for part in parts if part.startswith("layer_")), "")
        pattern = "/".join("layer_{i}" if part.startswith("layer_") else part for part in parts)
        yield path, tuple(name.replace("{i}", layer) for name in NAMES[pattern])


def _of_parts(shapes: dict[str, tuple[int, ...]], parts: list[str]) -> set[str]:
    return {path for path in shapes if path.removeprefix("bert/").split("/")[0] in parts}


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
    for copy, original in TIED.items():
        if copy not in tensors or "cls.predictions.bias" not in wanted:
            continue
        duplicate = tensors.pop(copy)
        require(
            np.array_equal(tensors.setdefault(original, duplicate), duplicate),
            f"{source}: {copy} differs from {original}, but BERT's masked-LM head shares them",
        )


# --- arrays ------------------------------------------------------------------------------------------------------

# PyTorch keeps matrices as [out, in]; ours are [in ..., out ...] with heads on an axis of their own. Only the
# projection behind attention has two input axes, [H, K, D].


def _matrix_shape(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    inputs = 2 if path.endswith("attention/out/kernel") else 1
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def _torch_shape(path: str, shape: tuple[int, ...], names: int) -> tuple[int, ...]:
    if path.endswith("kernel"):
        rows, columns = _matrix_shape(path, shape)
        return (columns // names, rows)
    return (math.prod(shape) // names,) if names > 1 else shape


def _from_torch(path: str, tensors: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    parts = [tensor.T if path.endswith("kernel") else tensor for tensor in tensors]
    return np.concatenate(parts, axis=-1).reshape(shape)


def _to_torch(path: str, array: np.ndarray, names: int) -> list[np.ndarray]:
    if path.endswith("kernel"):
        return np.split(array.reshape(_matrix_shape(path, array.shape)).T, names)
    return np.split(array.reshape(-1), names) if names > 1 else [array]


def _read_tensors(folder: Path) -> Flat:
    path = folder / "model.safetensors"
    if not path.is_file():
        require(
            not (folder / "model.safetensors.index.json").is_file(),
            f"{folder}: the model is split into several files; save it as one model.safetensors",
        )
        require(
            not (folder / "pytorch_model.bin").is_file(),
            f"{folder} has only pytorch_model.bin, a pickle, which is never read. Convert it where PyTorch is: "
            "transformers.BertForPreTraining.from_pretrained(folder).save_pretrained(folder)",
        )
    return read_tensors(path)


def _check_depth(tensors: Flat, layers: int, folder: Path) -> None:
    # Before the names of thousands of layers are made up, of which the file has none.
    found = {name.split("encoder.layer.")[1].split(".")[0] for name in tensors if "encoder.layer." in name}
    require(
        not found or len(found) >= layers,
        f"{folder / 'config.json'}: num_hidden_layers {layers}, but model.safetensors has {len(found)} layers",
    )
