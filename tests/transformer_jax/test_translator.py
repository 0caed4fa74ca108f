import numpy as np
import pytest

from transformer_jax import Translator, generate, translator

LETTERS = "abcdefgh"


class Letters:
    """A letter is a token; 0 is padding and 1 the end."""

    def encode(self, text):
        return [LETTERS.index(letter) + 2 for letter in text]

    def decode(self, ids):
        return "".join(LETTERS[i - 2] if i > 1 else "?" for i in ids)


@pytest.fixture
def calls(monkeypatch):
    """Stands a model in that copies its source, and keeps what it was asked."""
    calls = []

    def copy(model, params, input_ids, **options):
        calls.append((np.asarray(input_ids), options))
        out = np.zeros((len(input_ids), options["max_length"]), np.int32)
        out[:, 1 : input_ids.shape[1] + 1] = input_ids
        return out

    monkeypatch.setattr(translator, "generate", copy)
    return calls


def test_sentences_come_back_in_their_order(tiny, calls):
    sentences = ["abc", "", "h" * 20, "a", "gfe", "ba" * 5, "c"]
    assert Translator(*tiny, Letters(), batch_size=2)(sentences) == sentences
    assert [ids.shape for ids, _ in calls] == [(2, 8), (2, 8), (2, 16), (2, 24)]


def test_batches_are_full_and_the_rows_that_fill_them_are_ends(tiny, calls):
    Translator(*tiny, Letters(), batch_size=4)(["ab", "c"])
    ((ids, options),) = calls
    expected = np.zeros((4, 8), np.int32)
    expected[:, 0] = 1
    expected[0, :2], expected[1, :3] = (4, 1), (2, 3, 1)
    np.testing.assert_array_equal(ids, expected)
    assert options == {"num_beams": 4, "length_penalty": 0.6, "max_length": 58, "preset": "paper"}


def test_options_reach_the_search(tiny, calls):
    Translator(*tiny, Letters(), num_beams=2, length_penalty=1.5, preset="hf")(["a"])
    assert calls[0][1] == {"num_beams": 2, "length_penalty": 1.5, "max_length": 58, "preset": "hf"}


def test_long_sources_are_cut_and_keep_their_end(tiny, calls):
    assert Translator(*tiny, Letters(), max_length=5, batch_size=1)(["abcdefgh", "abcd"]) == ["abcd", "abcd"]
    np.testing.assert_array_equal(calls[0][0][0], [2, 3, 4, 5, 1, 0, 0, 0])


def test_an_output_without_an_end_is_whole(tiny, monkeypatch):
    monkeypatch.setattr(translator, "generate", lambda *_, **__: np.array([[0, 2, 3, 4]]))
    assert Translator(*tiny, Letters(), batch_size=1)(["a"]) == ["abc"]


def test_nothing_to_translate(tiny, calls):
    assert Translator(*tiny, Letters())([]) == []
    assert not calls


def test_widths_are_few_and_hold_their_sources():
    widths = [translator._bucket(n) for n in range(1, 513)]
    assert sorted(set(widths)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(width >= n for n, width in enumerate(widths, 1))
    assert all(width <= 1.5 * n for n, width in enumerate(widths, 1) if n > 16)


def test_a_translation_is_what_generate_gives(make_transformer):
    model, params = make_transformer(vocab_size=10, max_length=128)
    sentences = ["abcabc", "h", "de"]
    translated = Translator(model, params, Letters(), num_beams=2, batch_size=2)(sentences)
    for sentence, text in zip(sentences, translated, strict=True):
        source = np.zeros((2, 8), np.int32)
        source[:, : len(sentence) + 1] = [*Letters().encode(sentence), 1]
        ids = generate(model, params, source, num_beams=2, length_penalty=0.6, max_length=58, preset="paper")
        words = np.asarray(ids)[0, 1:].tolist()
        assert text == Letters().decode(words[: words.index(1)] if 1 in words else words)
