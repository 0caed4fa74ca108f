"""What tells whether the data of a run is still what it was: a digest for each place that it came from."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from train.data.files import file_digest
from train.data.tfds import is_tfds, tfds_source
from transformer_jax.checks import listed, printed


def fingerprint(data: Sequence[str], option: str = "--data", split: str = "train") -> dict[str, str]:
    """Entry -> SHA-256 of what it names: a file's bytes, or all files of TFDS data with their names.

    `split` is that of a TFDS entry that names none.

    Raises:
        InputError: an entry cannot be read.
    """
    return {
        entry: _folder_digest(entry, option, split) if is_tfds(entry) else file_digest(entry, option) for entry in data
    }


def fingerprint_of(name: str, rows: Iterable[Sequence[str]]) -> dict[str, str]:
    """The fingerprint of data that comes from no file: documents or pairs, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
    return {name: digest.hexdigest()}


def fingerprint_of_model(folder: Path, option: str = "--model") -> dict[str, str]:
    """The fingerprint of the files in a model's folder."""
    kinds = (".json", ".safetensors", ".msgpack", ".txt", ".model", ".spm")
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds)
    return {str(path): file_digest(path, option) for path in files}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Says which entry differs; None where the data is the same, under whatever names."""
    for name in before:
        if name in now and before[name] != now[name]:
            return printed(name)
    if sorted(before.values()) == sorted(now.values()):
        return None
    gone, new = ([printed(name) for name in one if name not in other] for one, other in ((before, now), (now, before)))
    return f"{listed(gone) or 'nothing'} (now {listed(new) or 'nothing'})"


def _folder_digest(spec: str, option: str, split: str) -> str:
    folder = tfds_source(spec, split, option).folder
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(json.dumps([path.relative_to(folder).as_posix(), file_digest(path, option)]).encode())
    return digest.hexdigest()
