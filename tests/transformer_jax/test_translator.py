import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transformer_jax.marian_folders import own_model
from transformer_jax import SearchOptions, Translator, beam_search, chunks, generate, generation, translator
from transformer_jax.decoding import BeamSearch, Forbidden, Prefix, TopK
from transformer_jax.texts import TextsCut

LETTERS = "abcdefgh"


class Letters:
    """A letter is a token; 0 is padding and 1 the end."""

    def encode(self, text):
        return [LETTERS.index(letter) + 2 for letter in text]

    def decode(self, ids):
        return "".join(LETTERS[i - 2] if i > 1 else "?" for i in ids)


def test_sentences_come_back_in_their_order(tiny, calls):
    sentences = ["abc", "", "h" * 20, "a", "gfe", "ba" * 5, "c"]
    assert Translator(*tiny, Letters(), batch_size=2)(sentences) == sentences
    assert [ids.shape for ids, _ in calls] == [(2, 16), (2, 16), (2, 32)]


def test_batches_are_full_and_the_rows_that_fill_them_are_ends(tiny, calls):
    """Of a batch that is not full, rows are the next power of two."""
    Translator(*tiny, Letters(), batch_size=4)(["abcdefgh", "ab", "c"])
    ((ids, options),) = calls
    expected = np.zeros((4, 16), np.int32)
    expected[:, 0] = 1
    expected[0, :2], expected[1, :3], expected[2, :9] = (4, 1), (2, 3, 1), (*range(2, 10), 1)
    np.testing.assert_array_equal(ids, expected)
    assert options == SearchOptions(128, 0, 1, 0, 4, 0.6, preset="paper")


def test_options_reach_the_search(tiny, calls):
    Translator(*tiny, Letters(), num_beams=2, length_penalty=1.5, preset="hf", early_stopping="never")(["a"])
    assert calls[0][1] == SearchOptions(128, 0, 1, 0, 2, 1.5, "never", "hf")


def test_long_sources_are_cut_with_a_warning_and_keep_their_end(tiny, calls):
    translate = Translator(*tiny, Letters(), max_length=5, batch_size=1)
    with pytest.warns(TextsCut, match="the first 5 tokens are read: the end of texts 0 is left out"):
        assert translate(["abcdefgh", "abcd"]) == ["abcd", "abcd"]
    np.testing.assert_array_equal(calls[0][0][0, :8], [2, 3, 4, 5, 1, 0, 0, 0])


def test_an_output_without_an_end_is_whole(tiny, monkeypatch):
    """It is as long as it may be, and padding in it is a token like others."""
    out = np.array([[[0, *[2, 0] * 25, 4, 0, 0, 0]]])
    monkeypatch.setattr(translator, "decode", lambda *_: (out, np.zeros((1, 1))))
    assert Translator(*tiny, Letters(), batch_size=1)(["a"]) == ["a?" * 25 + "c"]


def test_nothing_to_translate(tiny, calls):
    assert Translator(*tiny, Letters())([]) == []
    assert not calls


def test_a_thousand_sentences_of_all_lengths_compile_few_programs():
    model, params = own_model(10, final_logits_bias=True)
    params["final_logits_bias"][1] = -1.0  # outputs of 10 to 110 tokens
    rng = np.random.default_rng(0)
    sentences = ["".join(rng.choice([*LETTERS], size=n)) for n in rng.integers(1, 60, size=1000)]
    steps = (chunks._begin, chunks._advance, chunks._keep, chunks._lengthen)
    before = [step._cache_size() for step in steps]
    outputs = Translator(model, params, Letters(), num_beams=2, batch_size=64)(sentences)
    assert len({len(output) for output in outputs}) > 50
    begun, advanced, kept, lengthened = (step._cache_size() - count for step, count in zip(steps, before, strict=True))
    # Widths 16, 32 and 64; caches of 32, 64 and 128 positions for each; and fewer rows at the end of some.
    assert begun == 3 and advanced <= 3 * 3 * 3 and kept <= 3 * 3 and lengthened <= 3 * 2 * 2


def test_a_translation_is_what_generate_gives(make_transformer):
    model, params = make_transformer(vocab_size=10, max_length=128)
    sentences = ["abcabc", "h", "de"]
    translated = Translator(model, params, Letters(), num_beams=2, batch_size=2)(sentences)
    for sentence, text in zip(sentences, translated, strict=True):
        source = np.zeros((2, 8), np.int32)
        source[:, : len(sentence) + 1] = [*Letters().encode(sentence), 1]
        limit = len(sentence) + 1 + 50
        ids = generate(model, params, source, num_beams=2, length_penalty=0.6, max_length=limit, preset="paper")
        words = np.asarray(ids)[0, 1:].tolist()
        assert text == Letters().decode(words[: words.index(1)] if 1 in words else words)


@pytest.fixture(scope="module")
def wordy():
    """A model over letters whose outputs are long, and differ."""
    model, params = own_model(10, final_logits_bias=True)
    params["final_logits_bias"][1] = -1.0
    return model, params


@pytest.mark.parametrize("num_beams", [1, 2])
def test_translations_begin_with_their_prefix(wordy, num_beams):
    translate = Translator(*wordy, Letters(), num_beams=num_beams, batch_size=2)
    sentences, prefixes = ["hgfehgfe", "h", "abab", ""], ["abc" * 9, "", "h", "ab"]
    outputs = translate(sentences, prefixes)
    assert [output.startswith(prefix) for output, prefix in zip(outputs, prefixes, strict=True)] == [*[True] * 3, False]
    assert outputs[1] == translate(["h"])[0] and outputs[3] == ""
    for drawn, prefix in zip(translate.sample(sentences, 3, prefixes=prefixes)[:3], prefixes, strict=False):
        assert all(output.text.startswith(prefix) for output in drawn)


def test_prefixes_are_checked(wordy):
    translate = Translator(*wordy, Letters(), batch_size=2)
    for prefixes, words in (
        (["a"], "1 prefixes for 2 sentences: give one for each"),
        ("ab", "give a list of prefixes, not 'ab'"),
        (["a", 3], r"prefixes\[1\] must be a string, not 3"),
        (["a" * 60, ""], r"prefixes\[0\] has 60 tokens, but there is room for 51"),
    ):
        with pytest.raises(ValueError, match=words):
            translate(["ab", "c"], prefixes)


def test_an_output_may_be_shorter(wordy):
    outputs = Translator(*wordy, Letters(), max_output_length=9, batch_size=4).n_best(["abab", "h" * 20])
    assert all(len(output.ids) <= 8 for found in outputs for output in found)


def test_constraints_that_are_no_ones_are_refused(wordy):
    for wrong, words in (
        ([TopK(3)], r"constraints must be a tuple, each a function, not \[TopK\(k=3\)\]"),
        (None, "constraints must be a tuple, each a function, not None"),
        ((Prefix(jnp.ones((2, 1), jnp.int32), jnp.ones(2, jnp.int32)),), "constraints that hold arrays are of a batch"),
    ):
        with pytest.raises(ValueError, match=words):
            Translator(*wordy, Letters(), constraints=wrong)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_constraints_that_leave_nothing_are_told(wordy, num_beams):
    translate = Translator(*wordy, Letters(), num_beams=num_beams, constraints=(Forbidden(tuple(range(10))),))
    for call in (translate, translate.n_best, translate.sample):
        with pytest.raises(ValueError, match="constraints that leave no token"):
            call(["ab"])
    with pytest.raises(ValueError, match="rows 0 of input_ids have scores .* constraints that leave no token"):
        generate(*wordy, [[2, 3, 1]], num_beams=num_beams, constraints=translate.constraints)


def test_the_shortest_table_of_an_ensemble_is_the_limit(make_transformer, calls):
    (model, params), (_, more) = (make_transformer(positions="learned", max_length=n) for n in (100, 60))
    shorter = make_transformer(positions="learned", max_length=60)[0]
    with pytest.warns(TextsCut, match="the first 60 tokens"):
        Translator(model, params, Letters(), others=((shorter, more),))(["ab" * 40])


def test_chunks_are_the_whole_search(wordy, monkeypatch):
    """Sentences that end early leave the batch, caches grow: ids and scores are those of one search."""
    monkeypatch.setattr(chunks, "FEWEST", 1)
    model, params = wordy
    ids = np.array([[2, 3, 4, 1], [5, 1, 0, 0], [6, 7, 1, 0], [8, 9, 3, 1]])
    limit_B = jnp.array([9, 70, 5, 40])
    search = BeamSearch(SearchOptions(70, 0, 1, 0, 3, 0.6))
    constraints = (Prefix(jnp.array([[2] * 30, [3] * 30, [4] * 30, [5] * 30]), jnp.array([2, 30, 0, 20])),)
    mask = jnp.asarray(ids != 0)
    found, scores = chunks.decode((model,), search, (params,), jnp.asarray(ids), mask, limit_B, constraints)
    state = generation.read_source(model, params, jnp.asarray(ids), mask, 3, 70)
    step = generation.decoder_step(model, params)
    expected, wanted = jax.jit(lambda s: beam_search(step, s, 4, search.options, constraints, limit_B))(state)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


# --- what cannot be translated -----------------------------------------------------------------------------------


def test_a_sentence_without_a_word_is_empty(tiny, calls):
    assert Translator(*tiny, Letters())(["", " ", "\t\n\u3000", "ab", ""]) == ["", "", "", "ab", ""]
    assert len(calls) == 1
    assert Translator(*tiny, Letters())(["", " "]) == ["", ""]
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("abc", "give a list of sentences, not 'abc'"),
        (b"abc", "give a list of sentences, not b'abc'"),
        (None, "give a list of sentences, not None"),
        (7, "give a list of sentences, not 7"),
        ({"a": "b"}, "give a list of sentences, not {'a': 'b'}"),
        (["a", None], r"sentences\[1\] must be a string, not None"),
        (["a", "b", b"c"], r"sentences\[2\] must be a string, not b'c'"),
        ([["a", "b"]], r"sentences\[0\] must be a string, not \['a', 'b'\]"),
        (["a", "b\ud800"], r"sentences\[1\] is not Unicode: .*surrogates"),
    ],
)
def test_what_is_no_list_of_sentences_is_refused(tiny, calls, sentences, message):
    with pytest.raises(ValueError, match=message):
        Translator(*tiny, Letters())(sentences)
    assert not calls


def test_sentences_that_are_cut_are_counted_and_named(tiny, calls):
    sentences = ["abc", *["a" * n for n in range(10, 18)], "a" * 10_000]
    translator = Translator(*tiny, Letters(), max_length=8)
    for translate in (translator, translator.n_best, translator.sample):
        with pytest.warns(TextsCut) as caught:
            translate(sentences)
        (warning,) = caught
        assert str(warning.message).endswith("tokens are read: the end of texts 1, 2, 3, 4, 5 and 4 more is left out")
        assert warning.filename == __file__ and warning.message.indices == [*range(1, 10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"max_length": n}, "max_length must be an integer from 2 to") for n in (0, 1, -3, 2.5, 2**40, None)],
        *[({"batch_size": n}, "batch_size must be an integer from 1 to") for n in (0, -1, "8", True)],
        *[({"num_beams": n}, "num_beams must be an integer from 1 to") for n in (0, -1, 4.0, 10**9)],
        *[({"length_penalty": x}, "length_penalty must be a number from -5 to 5") for x in (np.nan, np.inf, 99, "1")],
        ({"preset": "fairseq"}, "preset must be 'hf', 'paper' or 'marian', not 'fairseq'"),
    ],
)
def test_options_are_checked_when_a_translator_is_made(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        Translator(*tiny, Letters(), **options)


class Sized(Letters):
    def __init__(self, words=11, eos=1, pad=0):
        self.vocab_size, self.eos_id, self.pad_id = lambda: words, lambda: eos, lambda: pad


def test_a_tokenizer_that_is_not_the_models_is_refused(tiny):
    for tokenizer in (Sized(), Sized(words=10), Sized(eos=-1, pad=-1), Letters()):
        Translator(*tiny, tokenizer)
    for tokenizer, message in (
        (Sized(words=12), "the tokenizer has 12 words, but the model's vocab_size is 11"),
        (Sized(eos=2), "eos_id of the tokenizer is 2, but that of the model 1"),
        (Sized(pad=3), "pad_id of the tokenizer is 3, but that of the model 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Translator(*tiny, tokenizer)


def test_parameters_that_are_nan_translate_nothing(tiny):
    model, params = tiny
    broken = {**params, "embedding": {"embedding": params["embedding"]["embedding"] * jnp.nan}}
    with pytest.raises(ValueError, match=r"sentences\[0\] has scores that are not finite"):
        Translator(model, broken, Letters(), num_beams=1, batch_size=2)(["ab"])
