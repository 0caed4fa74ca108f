"""The table of GLUE against what TFDS says of each task, without its data."""

import importlib

import pytest
import tensorflow_datasets as tfds

from train.data.glue import GLUE, glue
from train.data.tables import read_table, text_of
from train.errors import InputError


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"])
def test_columns_and_classes_are_tfds_own(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    importlib.import_module("tensorflow_datasets.text.glue")  # which registers the builder
    task = glue(name)
    assert task.data == f"tfds:glue/{name}"
    features = tfds.builder(task.data.removeprefix("tfds:")).info.features
    texts = [column for column in (task.text, task.pair) if column]
    assert set(features) == {*texts, task.label, "idx"}
    label = features[task.label]
    assert task.labels == (tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ())
    assert (task.metric in ("eval/spearman", "eval/pearson")) == (not task.labels)


def test_rows_of_a_task(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    task = glue("mnli")
    assert task.validation == ("validation_matched", "validation_mismatched") and len(GLUE) == 9
    with tfds.testing.mock_data(num_examples=2):
        columns = {"text": task.text, "pair": task.pair, "label": task.label}
        rows = read_table(task.data, columns, option="--data", split=task.train)
    assert len(rows) == 2 and {row.fields["label"] for row in rows} <= {"entailment", "neutral", "contradiction"}
    assert all(text_of(row, role) for row in rows for role in ("text", "pair"))


def test_unknown_task():
    with pytest.raises(InputError, match=r"^--task: GLUE has no task sst; it has cola, sst2, mrpc"):
        glue("sst", "--task")
