"""TextEmbedder: sentence-transformers' vectors from sentence-transformers' files, and search by them."""

import csv
import dataclasses
import functools
import gzip
import io
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from bert_jax import BertModel, BertTokenizer, EmbedderSettings, TextEmbedder, TextsCut
from bert_jax.pipelines import embed
from bert_jax.pipelines.embed import _pooled
from tests.bert_jax import make_golden_embeddings as golden
from tests.bert_jax.folders import WORDS, with_settings

TEXTS = ["the cat", "", "dogs ran over green hills while a cat sat on the mat", "mat", "The Cat"]
SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))


@functools.cache
def applied(model):
    return jax.jit(model.apply)


def states(embedder, text):
    """The last hidden states [L, D] of one text alone."""
    batch = embedder.tokenizer([text], max_length=40, padding="max_length")
    out = applied(embedder.model)({"params": embedder.params}, **batch)
    return np.asarray(out.last_hidden_state[0])[: batch["attention_mask"].sum()]


POOLS = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len": lambda x: x.sum(0) / np.sqrt(len(x)),
}


# --- all-MiniLM-L6-v2 --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm(minilm_folder):
    return TextEmbedder.from_pretrained(minilm_folder)


@pytest.fixture(scope="module")
def minilm_states(minilm_folder, minilm):
    """(ids, last hidden states, pooler output) of each awkward text, from one padded batch."""
    model, params = BertModel.from_pretrained(minilm_folder)
    encodings = minilm.tokenizer.encode(golden.TEXTS, max_length=minilm.longest)
    out = jax.jit(model.apply)({"params": params}, **minilm.tokenizer.pad(encodings))
    hidden = [np.asarray(x)[: len(e)] for x, e in zip(out.last_hidden_state, encodings, strict=True)]
    return [e.ids for e in encodings], hidden, np.asarray(out.pooler_output)


def test_settings_of_minilm(minilm):
    assert minilm.settings == EmbedderSettings(pooling=("mean",), normalize=True, max_length=256)
    assert (minilm.longest, minilm.dimension) == (256, 384)


def test_minilm_against_recorded_outputs(minilm, minilm_states):
    recorded = np.load(golden.PATH)
    ids, hidden, pooled = minilm_states
    for row, expected in zip(ids, np.split(recorded["ids"], recorded["lengths"].cumsum()[:-1]), strict=True):
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_allclose([x[-1] for x in hidden], recorded["last_token"], atol=1e-4)
    np.testing.assert_allclose([x.mean(0) for x in hidden], recorded["mean"], atol=1e-4)
    np.testing.assert_allclose(pooled, recorded["pooler_output"], atol=1e-4)
    with pytest.warns(TextsCut, match="the first 256 tokens are read: the end of texts 5 is left out") as caught:
        vectors = minilm(golden.TEXTS)
    assert caught[0].filename == __file__
    assert vectors.dtype == np.float32 and vectors.shape == (len(golden.TEXTS), 384)
    normalized = recorded["mean"] / np.linalg.norm(recorded["mean"], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, normalized, atol=1e-5)


def test_minilm_against_pytorch(minilm_folder, minilm_states, peers):
    theirs = golden.outputs(minilm_folder, golden.TEXTS, max_length=256)
    for ours, name in zip(minilm_states, ("ids", "last_hidden_state", "pooler_output"), strict=True):
        for a, b in zip(ours, theirs[name], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def ranks(values):
    """Ranks, those of equal values averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def test_sts_benchmark(minilm):
    path = SHARED / "stsb_en/test.csv.gz"
    if not path.exists():
        pytest.skip(f"the STS benchmark is not at {path}; SHARED_DATA names its folder")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [(row["sentence1"], row["sentence2"], float(row["score"])) for row in csv.DictReader(file)]
    first, second, scores = ([row[column] for row in rows] for column in range(3))
    vectors = minilm([*first, *second])
    cosines = (vectors[: len(first)] * vectors[len(first) :]).sum(1)
    spearman = 100 * np.corrcoef(ranks(cosines), ranks(np.array(scores)))[0, 1]
    assert len(scores) == 1379 and abs(spearman - 82.03) < 0.05, spearman


# --- poolings ----------------------------------------------------------------------------------------------------


def test_a_plain_folder_gives_the_mean_of_the_tokens(plain):
    assert plain.settings == EmbedderSettings() and plain.longest == 40
    np.testing.assert_allclose(plain(TEXTS), [states(plain, text).mean(0) for text in TEXTS], atol=1e-5)
    assert np.array_equal(plain(TEXTS)[0], plain(TEXTS)[4])


@pytest.mark.parametrize("pooling", [("cls",), ("max",), ("mean_sqrt_len",), ("mean_sqrt_len", "mean", "max", "cls")])
def test_poolings(plain, pooling):
    normalize = len(pooling) > 1
    embedder = with_settings(plain, pooling=pooling, normalize=normalize)
    assert embedder.dimension == 8 * len(pooling)
    for text, vector in zip(TEXTS, embedder(TEXTS), strict=True):
        expected = np.concatenate([pool(states(plain, text)) for name, pool in POOLS.items() if name in pooling])
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected) if normalize else expected, atol=1e-5)


def test_a_corpus_is_encoded_in_blocks(plain, monkeypatch):
    texts = [*TEXTS, "mat " * 60, "cat", "the " * 60]
    with pytest.warns(TextsCut, match="the end of texts 5, 7 is left out"):
        expected = plain(texts)
    monkeypatch.setattr(embed, "BLOCK", 3)
    with pytest.warns(TextsCut, match="the end of texts 5, 7 is left out"):
        np.testing.assert_array_equal(plain(texts), expected)


def test_order_is_kept_and_little_is_compiled(plain):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 30))) for _ in range(60)]
    _pooled.clear_cache()
    vectors = plain(texts, batch_size=16)
    assert _pooled._cache_size() <= 3  # 16 and 32 and 40 tokens, 16 rows
    for index in (0, 1, 30, 59):
        np.testing.assert_allclose(plain([texts[index]])[0], vectors[index], atol=1e-5)


def test_max_length_lowercase_and_prompts(plain):
    cut = with_settings(plain, max_length=4)
    with pytest.warns(TextsCut, match="the first 4 tokens are read: the end of texts 2 is left out"):
        vectors = cut(TEXTS)
    np.testing.assert_allclose(vectors[2], plain(["dogs ran"])[0], atol=1e-5)
    assert with_settings(plain, max_length=900).longest == 40
    asked = with_settings(plain, prompts={"query": "the ", "document": "on "}, default_prompt="query")
    np.testing.assert_array_equal(asked(["cat"]), plain(["the cat"]))
    np.testing.assert_array_equal(asked(["cat"], prompt_name="document"), plain(["on cat"]))
    with pytest.raises(ValueError, match="prompt_name 'passage': the prompts are query, document"):
        asked(["cat"], prompt_name="passage")
    best = asked.search("cat", ["mat", "hills"], top_k=1)
    assert best == plain.search("the cat", ["on mat", "on hills"], top_k=1)


def test_lowercase(plain_folder, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((plain_folder / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    embedder = TextEmbedder.from_pretrained(plain_folder)
    cased = dataclasses.replace(embedder, tokenizer=BertTokenizer.from_pretrained(tmp_path))
    assert not np.allclose(cased(["The Cat"]), cased(["the cat"]))
    np.testing.assert_array_equal(with_settings(cased, lowercase=True)(["The Cat"]), cased(["the cat"]))


# --- search ------------------------------------------------------------------------------------------------------


def test_search(plain):
    corpus = ["mat", "the cat", "green hills", "the cat"]
    found = plain.search("the cat", corpus, top_k=3)
    assert [index for index, _ in found[:2]] == [1, 3] and found[0][1] == pytest.approx(1, abs=1e-5)
    assert len(plain.search("the cat", corpus)) == 4
    vectors = plain(corpus)
    for given in (vectors, jnp.asarray(vectors), vectors * 7):
        again = plain.search("the cat", given, top_k=3)
        assert [index for index, _ in again] == [index for index, _ in found]
        np.testing.assert_allclose([score for _, score in again], [score for _, score in found], atol=1e-5)
    assert plain.search("the cat", np.zeros((2, 8), np.float32)) == [(0, 0.0), (1, 0.0)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["cat"], ["mat"]), r"query must be a str, not \['cat'\]"),
        (("cat", "mat"), "texts must be a list of texts, not one str"),
        (("cat", []), "texts is empty"),
        (("cat", np.zeros((2, 7), np.float32)), r"corpus must be \[n, 8\], not \[2, 7\]"),
        (("cat", np.zeros((2, 8), np.int32)), "corpus must hold finite"),
        (("cat", np.full((2, 8), np.nan)), "corpus must hold finite"),
        (("cat", ["mat"], 0), "top_k must be an integer from 1"),
    ],
)
def test_searches_are_refused(plain, arguments, words):
    with pytest.raises(ValueError, match=words):
        plain.search(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cat",), "texts must be a list of texts, not one str"),
        (([],), "texts is empty"),
        ((["cat", None],), r"texts\[1\] must be a str"),
        ((["cat"], 0), "batch_size must be an integer from 1"),
        ((["cat"], 32, "query"), "prompt_name 'query': the prompts are none"),
    ],
)
def test_texts_are_refused(plain, arguments, words):
    with pytest.raises(ValueError, match=words):
        plain(*arguments)


def test_answers_that_are_no_numbers_are_refused(plain):
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), plain.params)
    with pytest.raises(ValueError, match="answers are not finite"):
        dataclasses.replace(plain, params=broken)(["cat"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pooling": "mean"}, "pooling must be a tuple, each a string, not 'mean'"),
        ({"pooling": ()}, "pooling must be a tuple"),
        ({"pooling": ("lasttoken",)}, "pooling must be a tuple"),
        ({"normalize": 1}, "normalize must be True or False"),
        ({"max_length": 0}, "max_length must be an integer from 1"),
        ({"prompts": {"query": 3}}, r"prompts\['query'\] must be a string, not 3"),
        ({"default_prompt": "query"}, "default_prompt is 'query', but prompts has"),
    ],
)
def test_settings_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        EmbedderSettings(**fields)


@pytest.mark.parametrize(("terminal", "texts", "shown"), [(True, 40, True), (True, 4, False), (False, 40, False)])
def test_a_bar_for_long_lists_on_a_terminal(plain, monkeypatch, terminal, texts, shown):
    screen = io.StringIO()
    monkeypatch.setattr("transformer_jax.texts.MANY_BATCHES", 3)
    monkeypatch.setattr("transformer_jax.texts.Console", lambda stderr: Console(file=screen, force_terminal=terminal))
    plain(["cat"] * texts, batch_size=16)
    assert (f"{texts}/{texts}" in screen.getvalue()) is shown
