"""TFDS data made of rows that a test has, and files of every format."""

import gzip
from typing import ClassVar

import pyarrow
import pyarrow.parquet
import tensorflow_datasets as tfds


class StoredRows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose rows `store` writes: it generates none itself. A class under it says its FEATURES."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: ClassVar[dict] = {}

    def _info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(self.FEATURES))

    def _split_generators(self, dl_manager):
        return {}

    def _generate_examples(self):
        return iter(())


def store(builder, splits):
    """Writes rows as `download_and_prepare` would, without its search for checksums of downloads."""
    builder.data_path.mkdir(parents=True)
    writer = tfds.core.SequentialWriter(builder.info, max_examples_per_shard=3, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()


def write(path, content):
    """Writes text, bytes or, as Parquet, columns; returns the path as an entry of --data."""
    if isinstance(content, dict):
        pyarrow.parquet.write_table(pyarrow.table(content), path)
        return str(path)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)
