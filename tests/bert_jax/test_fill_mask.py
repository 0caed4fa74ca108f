"""FillMask: what it says is what the model says, and it compiles little."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import BertForPreTraining, BertTokenizer, FillMask, TextError, TextsCut
from bert_jax.pipelines.fill_mask import _filled, _likeliest
from tests.bert_jax.folders import WORDS, save_small, small_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "max_position_embeddings": 40}
    folder = tmp_path_factory.mktemp("model")
    return save_small(folder, BertForPreTraining, small_tokenizer(), initializer_range=0.5, **sizes)


def sentences(count):
    rng = np.random.default_rng(0)
    out = []
    for _ in range(count):
        words = list(rng.choice(WORDS, rng.integers(1, 25)))
        words[rng.integers(len(words))] = "[MASK]"
        out.append(" ".join(words))
    return out


def test_answers_are_those_of_the_model(folder):
    texts = sentences(5)
    answers = FillMask.from_pretrained(folder)(texts, top_k=3)
    model, params = BertForPreTraining.from_pretrained(folder)
    tokenizer = BertTokenizer.from_pretrained(folder)
    apply = jax.jit(model.apply)
    for text, answer in zip(texts, answers, strict=True):
        batch = tokenizer([text], max_length=32, padding="max_length")
        logits = apply({"params": params}, **batch).prediction_logits[0]
        p = np.asarray(jax.nn.softmax(logits[int(np.argmax(batch["input_ids"][0] == tokenizer.mask_id))]))
        best = np.argsort(-p)[:3]
        assert [token for token, _ in answer] == [tokenizer.backend.id_to_token(int(i)) for i in best]
        np.testing.assert_allclose([probability for _, probability in answer], p[best], rtol=1e-4)


def test_several_masks_are_filled_each_on_its_own(folder):
    fill = FillMask.from_pretrained(folder)
    texts = ["the [MASK] sat on [MASK][MASK]", "a [MASK]", "[MASK] ran [MASK]"]
    several, one, two = fill(texts, top_k=3)
    assert [len(several), len(one), len(two)] == [3, 3, 2]
    assert [filled.masks for filled in fill.fills(texts, top_k=3)] == [several, [one], two]
    model, params = BertForPreTraining.from_pretrained(folder)
    batch = fill.tokenizer(texts[:1], max_length=32, padding="max_length")
    probabilities = np.asarray(jax.nn.softmax(jax.jit(model.apply)({"params": params}, **batch).prediction_logits[0]))
    for at, fills in zip(np.flatnonzero(batch["input_ids"][0] == fill.tokenizer.mask_id), several, strict=True):
        best = np.argsort(-probabilities[at])[:3]
        assert [token for token, _ in fills] == [fill.tokenizer.backend.id_to_token(int(i)) for i in best]
        np.testing.assert_allclose([p for _, p in fills], probabilities[at][best], rtol=1e-4)


def test_fills_as_text(folder):
    fill = FillMask.from_pretrained(folder)
    texts = ["The  [MASK] sat,\tÉ [MASK]!", "[MASK]", "\U0001f600 東[MASK]京"]
    whole = 0
    for text, (masks, completions) in zip(texts, fill.fills(texts, 9), strict=True):
        assert len(completions) == 9
        for k, completion in enumerate(completions):
            tokens = [fills[k][0] for fills in masks]
            assert completion == _filled(text, [match.span() for match in re.finditer(r"\[MASK\]", text)], tokens)
            if not any(token.startswith("##") for token in tokens):
                whole += 1
                assert completion == text.replace("[MASK]", "%s") % (*tokens,)
    assert whole > 3
    assert _filled("a cat [MASK] [MASK].", [(6, 12), (13, 19)], ["##s", "ran"]) == "a cats ran."
    assert _filled("[MASK]", [(0, 6)], ["##"]) == "##"


def test_few_compilations_and_answers_in_order(folder):
    fill = FillMask.from_pretrained(folder)
    texts = sentences(50)
    _likeliest.clear_cache()
    answers = fill(texts, top_k=2)
    assert _likeliest._cache_size() <= 2  # 32 and 18 rows, the second batch with longer ones
    for i in (0, 13, 49):
        (alone,) = fill([texts[i]], top_k=2)
        assert [token for token, _ in alone] == [token for token, _ in answers[i]]
    _likeliest.clear_cache()
    for rows in (5, 6, 8):
        for words in (1, 9):
            fill(["[MASK]" + " cat" * words] * rows, top_k=2)
    assert _likeliest._cache_size() == 1


def test_bad_input(folder):
    fill = FillMask.from_pretrained(folder)
    for text in ("", "no mask", "cat " * 60 + "[MASK]"):
        with pytest.raises(TextError, match=r"needs a \[MASK\] in its first 40 tokens"):
            fill([text])
    with pytest.raises(TextError, match=r"has a \[MASK\] behind its first 40 tokens") as caught:
        fill(["[MASK]", "[MASK]" + " cat" * 60 + " [MASK]"])
    assert caught.value.index == 1
    with pytest.raises(ValueError, match="top_k"):
        fill(["[MASK]"], top_k=0)
    with pytest.raises(ValueError, match="list of texts"):
        fill("[MASK]")


def test_texts_are_refused_by_place(folder):
    fill = FillMask.from_pretrained(folder)
    for texts, words in (
        ([], "texts is empty"),
        (["[MASK]", 3], r"texts\[1\] must be a str, not 3"),
        ([b"[MASK]"], r"texts\[0\] must be a str"),
        (["[MASK] \udc00"], r"texts\[0\], character 7"),
        (["[MASK]", "no mask"], r"texts\[1\] \('no mask'\) needs a \[MASK\] .* there is none"),
    ):
        with pytest.raises(ValueError, match=words):
            fill(texts)
    tokens = len(fill.tokenizer.backend.get_vocab())
    for top_k in (0, -1, tokens + 1, True, 2.0, "2", None):
        with pytest.raises(ValueError, match=f"top_k must be an integer from 1 to {tokens}, not"):
            fill(["[MASK]"], top_k=top_k)


def test_what_is_cut_off_is_said(folder):
    fill = FillMask.from_pretrained(folder)
    texts = ["[MASK] cat", "[MASK]" + " cat" * 37, "the [MASK]" + " cat" * 60]
    with pytest.warns(
        UserWarning, match=r"of a text the first 40 tokens are read: the end of texts 2 is left out"
    ) as caught:
        answers = fill(texts, top_k=2)
    assert caught[0].filename == __file__ and len(answers) == 3
    assert isinstance(caught[0].message, TextsCut) and caught[0].message.indices == [2]
    with pytest.warns(TextsCut) as caught:
        fill.fills(texts)
    assert caught[0].filename == __file__
    fill(texts[:2], top_k=2)  # 40 tokens fit


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder, tmp_path):
    fill = FillMask.from_pretrained(folder)
    rows = fill.model.config.vocab_size
    large = BertTokenizer.train([" ".join(WORDS) + " quick brown foxes jump"] * 3, 150)
    words = f"the tokenizer has {large.vocab_size} tokens, but the model was made for {rows}"
    with pytest.raises(ValueError, match=words):
        FillMask(fill.model, fill.params, large)
    fill.model.save_pretrained(tmp_path, fill.params)
    large.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: {words}"):
        FillMask.from_pretrained(tmp_path)


def test_only_tokens_are_filled_in(folder):
    fill = FillMask.from_pretrained(folder)
    small = BertTokenizer.train([" ".join(WORDS[:6])] * 3, 40)
    assert small.vocab_size < fill.model.config.vocab_size
    (answer,) = FillMask(fill.model, fill.params, small)(["the [MASK]"], top_k=small.vocab_size)
    assert {token for token, _ in answer} == small.backend.get_vocab().keys()
    np.testing.assert_allclose(sum(probability for _, probability in answer), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_refused(folder, value):
    fill = FillMask.from_pretrained(folder)
    for part in ("bert", "predictions"):
        broken = fill.params | {part: jax.tree.map(lambda leaf: jnp.full_like(leaf, value), fill.params[part])}
        with pytest.raises(ValueError, match="answers are not finite: its parameters hold nan"):
            FillMask(fill.model, broken, fill.tokenizer)(["the [MASK]"])
