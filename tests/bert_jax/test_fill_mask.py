"""FillMask: what it says is what the model says, and it compiles little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import BertConfig, BertForPreTraining, BertTokenizer, FillMask
from bert_jax.pipelines import _fill

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "over", "green", "hills"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = BertTokenizer.train([" ".join(WORDS)] * 3, 100)
    config = BertConfig.tiny(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        initializer_range=0.5,
    )
    model = BertForPreTraining(config)
    model.save_pretrained(folder, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    tokenizer.save_pretrained(folder)
    return folder


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


def test_few_compilations_and_answers_in_order(folder):
    fill = FillMask.from_pretrained(folder)
    texts = sentences(50)
    _fill.clear_cache()
    answers = fill(texts, top_k=2)
    assert _fill._cache_size() <= 2  # 32 and 18 rows, the second batch with longer ones
    for i in (0, 13, 49):
        (alone,) = fill([texts[i]], top_k=2)
        assert [token for token, _ in alone] == [token for token, _ in answers[i]]
    _fill.clear_cache()
    for rows in (5, 6, 8):
        for words in (1, 9):
            fill(["[MASK]" + " cat" * words] * rows, top_k=2)
    assert _fill._cache_size() == 1


def test_bad_input(folder):
    fill = FillMask.from_pretrained(folder)
    for text in ("no mask", "[MASK] and [MASK]", "cat " * 60 + "[MASK]"):
        with pytest.raises(ValueError, match=r"one \[MASK\]"):
            fill([text])
    with pytest.raises(ValueError, match="top_k"):
        fill(["[MASK]"], top_k=0)
    with pytest.raises(ValueError, match="list of texts"):
        fill("[MASK]")
