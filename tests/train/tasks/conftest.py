"""A tokenizer of a few words, whose ids can be counted by hand."""

import pytest

from bert_jax import BertTokenizer
from tests.train.tasks.tiny import VOCABULARY


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    return BertTokenizer.from_pretrained(folder)
