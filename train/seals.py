"""Seals: what each checkpoint's folder held when it was written, and what to do where it no longer holds that."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from train.errors import InputError
from transformer_jax.checkpoints import write_file

NAME = "SEAL"
# The draft of `write_file` stays behind where a kill interrupts it.
OWN = {NAME, f"{NAME}.tmp"}
# A save or a removal that a kill cut short has this in its name, or what Orbax and 0.1.0 put there.
UNFINISHED = ".unfinished"
LEFTOVERS = (UNFINISHED, ".orbax-checkpoint-tmp")
STEP = re.compile(r"0|[1-9][0-9]*")


class Seal(NamedTuple):
    """What is known of a checkpoint.

    Attributes:
        interim: it was made because the run was interrupted, at a step where none is due.
        metrics: the evaluation that it was saved with, if any.
        files: the sha256 of every file by its path in the folder.
    """

    step: int
    interim: bool
    metrics: dict[str, float] | None
    files: dict[str, str]


class Damaged(Exception):
    """A checkpoint is not what was written. The message says which file is wrong in what way."""


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file under a folder, but for its seal."""
    paths = [path for path in folder.rglob("*") if path.is_file() and str(path.relative_to(folder)) not in OWN]
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}


def write(folder: Path, seal: Seal) -> None:
    """Writes the seal into the folder, whole or not at all."""
    body = json.dumps(seal._asdict(), indent=1).encode() + b"\n"
    write_file(folder / NAME, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read(folder: Path, step: int) -> Seal:
    """The seal of the checkpoint of `step`; no other file is read. Raises Damaged where there is none of it."""
    if not folder.is_dir():
        raise Damaged("it is not a folder")
    if not (folder / NAME).is_file():
        raise Damaged(f"it has no {NAME} file, as if it had not been finished, or been written before 0.2")
    digest, _, body = (folder / NAME).read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise Damaged(f"{NAME} is not what was written")
    try:
        seal = Seal(**json.loads(body))
    except (TypeError, ValueError):
        raise Damaged(f"{NAME} is not one of this version") from None
    if seal.step != step:
        raise Damaged(f"it is a copy of the checkpoint of step {seal.step}")
    return seal


def verify(folder: Path, seal: Seal) -> None:
    """Reads every file of a checkpoint.

    Raises:
        Damaged: a file is missing, was added, cannot be read or is not what was sealed.
        InputError: this user may not read it.
    """
    try:
        found = hash_files(folder)
    except PermissionError as error:
        raise InputError(f"checkpoint {folder}: {error.filename} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror}") from error
    for path in sorted(found.keys() | seal.files.keys()):
        if path not in found:
            raise Damaged(f"{path} is missing")
        if path not in seal.files:
            raise Damaged(f"{path} was added")
        if found[path] != seal.files[path]:
            raise Damaged(f"{path} is not what was written")


def scan(folder: Path) -> tuple[dict[int, Seal], dict[Path, str]]:
    """The seals of a run's checkpoints by step, and what is wrong with everything else whose name is a number."""
    seals: dict[int, Seal] = {}
    damage: dict[Path, str] = {}
    for path in sorted(folder.iterdir()):
        try:
            if STEP.fullmatch(path.name):
                seals[int(path.name)] = read(path, int(path.name))
            elif _is_number(path.name):
                raise Damaged("it is not named by its step, as 500 would be")
        except Damaged as error:
            damage[path] = str(error)
    return seals, damage


def mend(folder: Path, say: Callable[[str], None]) -> None:
    """Removes what is unfinished and sets aside what is damaged, until the newest checkpoint is intact."""
    for path in list(folder.iterdir()):
        if any(mark in path.name for mark in LEFTOVERS):
            shutil.rmtree(path, ignore_errors=True)
    seals, damage = scan(folder)
    while seals:
        newest = folder / str(max(seals))
        try:
            verify(newest, seals[max(seals)])
            break
        except Damaged as error:
            damage[newest] = str(error)
            del seals[max(seals)]
    then = f"the run goes on from step {max(seals)}" if seals else "the run starts anew"
    for path, problem in damage.items():
        say(f"checkpoint {path}: {problem}; it is set aside as {set_aside(path)}, and {then}")


def set_aside(path: Path) -> str:
    """Renames a damaged checkpoint to what is never taken for one; returns the name."""
    name, number = f"{path.name}.damaged", 1
    while os.path.lexists(path.with_name(name)):
        number += 1
        name = f"{path.name}.damaged-{number}"
    try:
        path.rename(path.with_name(name))
    except OSError as error:
        raise InputError(f"checkpoint {path} is damaged and cannot be renamed: {error.strerror}") from error
    return name


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
