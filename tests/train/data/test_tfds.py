"""TFDS without TensorFlow: a builder of our own, registered names, folders, and what is said where data is absent."""

import subprocess
import sys
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds

from tests.train.stored import StoredRows, store
from train.data.fingerprint import changed, fingerprint
from train.data.tfds import is_tfds, tfds_source
from train.errors import InputError


class TinyPairs(StoredRows):
    """Four rows of train, two of test: text, a nested translation, a list of words and a class."""

    FEATURES: ClassVar = {
        "text": tfds.features.Text(),
        "pair": tfds.features.Translation(languages=("en", "de")),
        "words": tfds.features.Sequence(tfds.features.Text()),
        "label": tfds.features.ClassLabel(names=["no", "yes"]),
    }


def tiny_row(row):
    pair = {"en": f"street {row}", "de": f"Straße {row}"}
    return {"text": f"row {row} é", "pair": pair, "words": ["a", f"{row}"], "label": row % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    rows = [tiny_row(row) for row in range(4)]
    store(TinyPairs(data_dir=folder, file_format="array_record"), {"train": rows, "test": rows[:2]})
    return folder


@pytest.fixture
def data_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return prepared


def tfds_source_error(spec, split="train"):
    with pytest.raises(InputError) as caught:
        tfds_source(spec, split)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("--data: ")
    return message


def test_own_builder_reads_back_with_text_as_str(data_dir):
    source = tfds_source("tfds:tiny_pairs", "train")
    assert len(source) == 4
    rows = sorted(source, key=lambda row: row["text"])
    assert rows[2]["text"] == "row 2 é"
    assert rows[2]["pair"] == {"en": "street 2", "de": "Straße 2"}
    assert rows[2]["words"] == ["a", "2"]
    assert rows[3]["label"] == 1
    assert source.class_names == {"label": ["no", "yes"]}
    with pytest.raises(IndexError):
        source[4]


def test_split_of_the_spec_wins_and_slices_work(data_dir):
    assert len(tfds_source("tfds:tiny_pairs:test", "train")) == 2
    assert len(tfds_source("tfds:tiny_pairs:train[:1]", "test")) == 1


def test_prepared_folder(prepared):
    folder = prepared / "tiny_pairs" / "1.0.0"
    assert is_tfds(str(folder)) and not is_tfds(str(prepared)) and is_tfds("tfds:anything")
    assert len(tfds_source(str(folder), "test")) == 2
    assert "neither" in tfds_source_error(str(prepared))


@pytest.mark.parametrize(
    ("name", "config", "row"),
    [
        ("wmt14_translate", "de-en", {"en": "Good day.", "de": "Guten Tag."}),
        ("wiki40b", "en", {"wikidata_id": "Q1", "text": "\n_START_ARTICLE_\nUniverse", "version_id": "7"}),
    ],
)
def test_registered_names_resolve(tmp_path, monkeypatch, name, config, row):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    tfds_source_error(f"tfds:{name}/{config}")  # registers the builder
    store(tfds.builder(f"{name}/{config}", data_dir=tmp_path, file_format="array_record"), {"train": [row, row]})
    source = tfds_source(f"tfds:{name}/{config}", "train")
    assert len(source) == 2
    assert source[1] == row


def test_mocked_data_of_a_registered_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with tfds.testing.mock_data(num_examples=3):
        source = tfds_source("tfds:glue/sst2", "train")
    assert len(source) == 3
    assert isinstance(source[0]["sentence"], str)
    assert source.class_names["label"] == ["negative", "positive"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("tfds:wmt14_translate/de-en", ["tensorflow_datasets.translate.wmt14", "file_format='array_record'"]),
        ("tfds:wiki40b", ["tfds.builder('wiki40b/en'"]),
        ("tfds:imdb_reviews", ["download_and_prepare"]),
        ("tfds:glue/nope", ["'nope'", "sst2"]),
        ("tfds:no_such_data", ["'no_such_data'"]),
        ("tfds:wmt_translate", ["'wmt_translate'"]),
        ("tfds:", ["tfds:NAME"]),
    ],
)
def test_absent_data_is_named_with_the_command_that_prepares_it(tmp_path, monkeypatch, spec, expected):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    message = tfds_source_error(spec)
    for part in expected:
        assert part in message
    if "download_and_prepare" in message:
        assert f"TFDS_DATA_DIR={tmp_path} python -c" in message


def test_unknown_split_lists_the_splits(data_dir):
    assert "the data has train, test" in tfds_source_error("tfds:tiny_pairs:valid")


def test_other_file_formats_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    info = TinyPairs(data_dir=tmp_path).info
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[1],
        num_bytes=1,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=tmp_path, dataset_name="tiny_pairs", split="train", filetype_suffix="tfrecord"
        ),
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    folder = tmp_path / "tiny_pairs" / "1.0.0"
    folder.mkdir(parents=True)
    info.write_to_directory(folder)
    message = tfds_source_error("tfds:tiny_pairs")
    assert "not ArrayRecord" in message and "file_format='array_record'" in message


def test_missing_data_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    store(TinyPairs(data_dir=tmp_path, file_format="array_record"), {"train": [tiny_row(0)]})
    for file in (tmp_path / "tiny_pairs" / "1.0.0").glob("*array_record*"):
        file.unlink()
    assert "cannot be read" in tfds_source_error("tfds:tiny_pairs")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "[1]", "null", '{"a": ', "[" * 100_000])
def test_damaged_descriptions_are_named(tmp_path, monkeypatch, name, content):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    store(TinyPairs(data_dir=tmp_path, file_format="array_record"), {"train": [tiny_row(0)]})
    folder = tmp_path / "tiny_pairs" / "1.0.0"
    (folder / name).write_text(content)
    for spec in (str(folder), "tfds:tiny_pairs"):
        assert spec in tfds_source_error(spec)


def test_damaged_rows_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    store(TinyPairs(data_dir=tmp_path, file_format="array_record"), {"train": [tiny_row(0), tiny_row(1)]})
    source = tfds_source("tfds:tiny_pairs", "train", "--eval.data")

    class Damaged(list):
        def __getitem__(self, index):
            raise RuntimeError("bad\nchecksum")

    source._rows = Damaged([0, 1])
    with pytest.raises(
        InputError, match=r"^--eval\.data: tiny_pairs/1\.0\.0 train: row 1 cannot be read: bad checksum$"
    ):
        source[1]


def test_names_that_no_file_system_takes_are_no_tfds_data():
    for spec in ("n" * 5000, "a\0b", "lone \ud800", ""):
        assert not is_tfds(spec)


def test_fingerprint_follows_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    store(TinyPairs(data_dir=tmp_path, file_format="array_record"), {"train": [tiny_row(row) for row in range(4)]})
    folder = tmp_path / "tiny_pairs" / "1.0.0"
    by_name, by_folder = fingerprint(["tfds:tiny_pairs"]), fingerprint([str(folder)])
    assert list(by_name) == ["tfds:tiny_pairs"] and changed(by_name, by_folder) is None
    (shard, *_) = folder.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert changed(by_folder, fingerprint([str(folder)])) == str(folder)


def test_tensorflow_is_never_imported(data_dir):
    program = (
        "import sys\nfrom train.data.tfds import tfds_source\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "assert len(tfds_source('tfds:tiny_pairs', 'train')) == 4\n"
        "try: tfds_source('tfds:wmt14_translate/de-en', 'train')\nexcept ValueError: pass\n"
        "assert 'tensorflow_datasets.translate.wmt14' in sys.modules\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)
