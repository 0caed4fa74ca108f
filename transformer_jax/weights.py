"""The files that weights in Hugging Face's layout come in: which are read, in which order, and which are refused."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np

from transformer_jax.checkpoints import read_json, read_tensors
from transformer_jax.checks import listed, printed, require, shown
from transformer_jax.hub import local_folder
from transformer_jax.names import Flat

# What is fetched of a repository of the hub; of those without them, what is fetched then.
FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
OLD_FILES = ("config.json", "flax_model.msgpack")

_MSGPACK_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}


def model_folder(name: str | Path, more: tuple[str, ...] = ()) -> Path:
    """The folder of that name, or the hub's repository of which its weights and `more` files are downloaded.

    Raises:
        ValueError: there is neither.
    """
    folder = local_folder(name, (*FILES, *more))
    if folder != Path(name) and not any((folder / file).is_file() for file in READERS):
        folder = local_folder(name, (*OLD_FILES, *more))
    return folder


def read_weights(folder: Path, architecture: str) -> tuple[Flat, Path]:
    """Tensors by Hugging Face's names, in PyTorch's shapes, and the file that they come from.

    The first of these that the folder has: model.safetensors, model.safetensors.index.json with the files it names,
    flax_model.msgpack.

    Args:
        architecture: the class that wrote the folder, for the command that converts what is not read.

    Raises:
        ValueError: none of them is there, they are damaged, or they do not agree with each other.
    """
    for name, read in READERS.items():
        if (folder / name).is_file():
            return read(folder / name), folder / name
    for name, kind, where, options in REFUSED:
        require(
            not (folder / name).is_file(),
            f"{folder} has only {name}, {kind}, which is never read. Convert it where {where} is: transformers."
            f"{architecture}.from_pretrained(folder{options}).save_pretrained(folder)",
        )
    require(
        folder.parent.name != "snapshots",
        f"the repository of {folder} has none of {', '.join(READERS)}, and pickles are never read. Convert it where "
        f"PyTorch is: transformers.{architecture}.from_pretrained(name).save_pretrained(folder)",
    )
    return read_tensors(folder / "model.safetensors"), folder / "model.safetensors"


# --- several files -----------------------------------------------------------------------------------------------


def _read_shards(index: Path) -> Flat:
    """The tensors of all files that a model.safetensors.index.json names, each where it says."""
    where: Any = read_json(index).get("weight_map")
    fits = isinstance(where, Mapping) and len(where) > 0 and all(isinstance(file, str) for file in where.values())
    require(fits, f"{index}: weight_map must be an object of names and files, not {shown(where)}")
    tensors: Flat = {}
    for file in sorted(set(where.values())):
        found = read_tensors(_shard(index, file))
        wanted = {name for name, other in where.items() if other == file}
        missing, unexpected = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
        path = index.parent / file
        require(not missing, f"{path} lacks {len(missing)} tensors that {index.name} has in it: {listed(missing)}")
        more = f"{path} has {len(unexpected)} tensors that {index.name} has not in it: {listed(unexpected)}"
        require(not unexpected, more)
        tensors |= found
    return tensors


def _shard(index: Path, file: str) -> Path:
    """The file of that name beside the index; nothing outside the folder, by whatever way it is named."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", file) is not None
    require(plain, f"{index}: weight_map names {shown(file)}, which is no file of this folder")
    folder = index.parent.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":  # the hub's cache, whose files are links to ../../blobs
        allowed.append(folder.parents[1] / "blobs")
    inside = (index.parent / file).resolve().parent in allowed
    require(inside, f"{index}: weight_map names {shown(file)}, which is a link out of this folder")
    return index.parent / file


# --- the files of Hugging Face's Flax models ---------------------------------------------------------------------


def _read_msgpack(path: Path) -> Flat:
    """The tensors of a flax_model.msgpack, whose kernels are [in, out]."""
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        require(isinstance(tree, dict), f"it holds {type(tree).__name__}, not a tree of parameters")
        flat = flax.traverse_util.flatten_dict(tree)
    except Exception as error:  # msgpack, Flax and NumPy each have their own
        raise ValueError(f"{path} cannot be read as Flax's msgpack: {printed(error)}") from error
    flat = {parts[1:] if parts[0] == "params" and len(parts) > 1 else parts: tensor for parts, tensor in flat.items()}
    tensors: Flat = {}
    for parts, tensor in flat.items():
        name = printed("/".join(map(str, parts)), 100)
        array = isinstance(tensor, np.ndarray | np.generic) and all(isinstance(part, str) for part in parts)
        require(array, f"{path}: {name} must be an array, not {shown(tensor)}")
        full = ".".join([*parts[:-1], _MSGPACK_NAMES.get(parts[-1], parts[-1])])
        require(full not in tensors, f"{path} has two tensors for {name}")
        tensors[full] = np.asarray(tensor).T if parts[-1] == "kernel" else np.asarray(tensor)
    return tensors


READERS: dict[str, Callable[[Path], Flat]] = {
    "model.safetensors": read_tensors,
    "model.safetensors.index.json": _read_shards,
    "flax_model.msgpack": _read_msgpack,
}
# Files that are refused, what they are, and what their reader needs elsewhere.
REFUSED: tuple[tuple[str, str, str, str], ...] = (
    ("pytorch_model.bin", "a pickle", "PyTorch", ""),
    ("pytorch_model.bin.index.json", "which names pickles", "PyTorch", ""),
    ("tf_model.h5", "TensorFlow's format", "transformers 4 with TensorFlow and PyTorch", ", from_tf=True"),
)
