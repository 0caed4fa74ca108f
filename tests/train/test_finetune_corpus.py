"""What a fine-tuning run trains on, is evaluated on and tested on."""

import importlib
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds

from tests.train.stored import StoredRows, store
from train.finetune_corpus import load_corpus
from train.tasks import TASKS, ColumnsConfig, Settings


class SplitClasses(StoredRows):
    """Texts with a class."""

    FEATURES: ClassVar = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["x", "y"])}


def corpus(data, eval_data=(), test_data=(), task="classification"):
    made = TASKS[task](Settings(tuple(data), ColumnsConfig(), "single-label", 16, 4))
    return load_corpus(made, data, eval_data, test_data)


def texts(rows):
    return sorted(row.text for row in rows)


def test_tfds_data_is_evaluated_on_its_validation_split_unless_it_names_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    splits = {
        name: [{"text": f"{name} {row}", "label": row % 2} for row in range(count)]
        for name, count in (("train", 12), ("validation", 3), ("test", 2))
    }
    store(SplitClasses(data_dir=tmp_path, file_format="array_record"), splits)
    found = corpus(["tfds:split_classes"], test_data=("tfds:split_classes",))
    assert [len(found.rows), texts(found.held_out), len(found.test)] == [12, [f"validation {i}" for i in range(3)], 2]
    assert texts(found.test) == ["test 0", "test 1"]
    found = corpus(["tfds:split_classes:train"])
    assert len(found.held_out) == 2 and {*texts(found.held_out), *texts(found.rows)} == {
        f"train {i}" for i in range(12)
    }
    assert not {*texts(found.held_out)} & {*texts(found.rows)}
    (tmp_path / "dev.tsv").write_text("text\tlabel\n" + "a\tx\n" * 5)
    found = corpus(["tfds:split_classes"], eval_data=(str(tmp_path / "dev.tsv"),))
    assert len(found.rows) == 12 and len(found.held_out) == 5


def test_two_validation_splits_are_read_unless_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    importlib.import_module("tensorflow_datasets.text.glue")  # which registers the builder
    splits = {
        name: [{"premise": name, "hypothesis": f"{row}", "label": 1, "idx": row} for row in range(count)]
        for name, count in (("train", 3), ("validation_matched", 2), ("validation_mismatched", 4))
    }
    store(tfds.builder("glue/mnli", data_dir=tmp_path, file_format="array_record"), splits)
    found = corpus(["tfds:glue/mnli"])
    assert texts(found.held_out) == ["validation_matched"] * 2 + ["validation_mismatched"] * 4
    for name, count in (("matched", 2), ("mismatched", 4)):
        found = corpus(["tfds:glue/mnli"], eval_data=(f"tfds:glue/mnli:validation_{name}",))
        assert texts(found.held_out) == [f"validation_{name}"] * count
    path = tmp_path / "dev.tsv"
    path.write_text("premise\thypothesis\tlabel\na\tb\tneutral\n")
    assert len(corpus(["tfds:glue/mnli"], eval_data=(str(path),)).held_out) == 1


@pytest.mark.parametrize(("count", "held_out"), [(2, [0]), (9, [0]), (21, [0, 10, 20])])
def test_every_tenth_row_is_held_out(count, held_out, tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{row}\t{row % 2}\n" for row in range(count)))
    found = corpus([str(tmp_path / "a.tsv")])
    assert [row.text for row in found.held_out] == [str(row) for row in held_out]
    assert [row.text for row in found.rows] == [str(row) for row in range(count) if row not in held_out]
