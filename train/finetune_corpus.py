"""The rows of a fine-tuning run: what it trains on, is evaluated on, and tested on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from train.data import requests
from train.data.fingerprint import fingerprint, fingerprint_of
from train.data.tfds import is_tfds, split_of
from train.errors import InputError
from train.tasks import FinetuneTask

HELD_OUT_EVERY = 10


class Corpus(NamedTuple):
    """Training, held-out and test rows, what to say about them, and the fingerprint of what they were read from."""

    rows: list[Any]
    held_out: list[Any]
    test: list[Any]
    notes: list[tuple[str, str]]
    fingerprint: dict[str, str]


def load_corpus(task: FinetuneTask, data: Sequence[str], eval_data: Sequence[str], test_data: Sequence[str]) -> Corpus:
    """Reads --data, and --eval.data, TFDS' own validation split, or a part of --data that is held out."""
    if not data:
        rows, held_out = (task.embedded(side, requests.NAME) for side in requests.requests())
        digest = fingerprint_of(requests.NAME, [[repr(row)] for row in (*rows, *held_out)])
        notes = [("data", f"{requests.NAME}: {len(rows):,} rows"), ("held out", f"{len(held_out):,} rows")]
        return Corpus(rows, held_out, [], notes, digest)
    rows = [row for entry in data for row in task.read(entry, "--data", "train")]
    digest = fingerprint(data)
    notes = [("data", f"{', '.join(data)}: {len(rows):,} rows")]
    test = [row for entry in test_data for row in task.read(entry, "--test-data", "test")]
    trained_on = {*digest.values()}
    if test:
        notes += same_files(trained_on, test_data, "--test-data")
        digest |= named(fingerprint(test_data, "--test-data", "test"), "test")
        notes.append(("test", f"{', '.join(test_data)}: {len(test):,} rows"))
    other, option = eval_data, "--eval.data"
    if not other and all(is_tfds(entry) and not split_of(entry) for entry in data):
        other, option = data, "--data"
    if other:
        notes += same_files(trained_on, eval_data, "--eval.data")
        held_out = [row for entry in other for split in task.splits(entry) for row in task.read(entry, option, split)]
        digest |= named(fingerprint(other, option, task.validation[0]), "held out")
        notes.append(("held out", f"{', '.join(other)}: {len(held_out):,} rows"))
        return Corpus(rows, held_out, test, notes, digest)
    if len(rows) < 2:
        raise InputError("--data: one row is too little to hold some out; give more, or --eval.data")
    step = min(HELD_OUT_EVERY, len(rows))
    held_out = [row._replace(place=f"{row.place} (held out)") for row in rows[::step]]
    notes.append(("held out", f"every {step}th row: {len(held_out):,} rows"))
    return Corpus([row for index, row in enumerate(rows) if index % step], held_out, test, notes, digest)


def same_files(trained_on: set[str], entries: Sequence[str], option: str) -> list[tuple[str, str]]:
    """A row of the table for each file that has the content of one that is trained on; splits of TFDS share files."""
    found = fingerprint([entry for entry in entries if not is_tfds(entry)], option)
    same = [name for name, digest in found.items() if digest in trained_on]
    return [("WARNING", f"{option} {name} is trained on too: its scores say nothing of other text") for name in same]


def named(digest: dict[str, str], side: str) -> dict[str, str]:
    """A fingerprint under other names, for the same file may be on two sides."""
    return {f"{name} ({side})": value for name, value in digest.items()}
