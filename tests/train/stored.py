"""TFDS data made of rows that a test has, and files of every format."""

import gzip

import pyarrow
import pyarrow.parquet
import tensorflow_datasets as tfds


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
