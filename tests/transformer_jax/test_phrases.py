"""Outputs that must contain phrases: against all outputs that there are, and against a search written down."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.transformer_jax.marian_folders import own_model
from tests.transformer_jax.test_translator import Letters
from tests.transformer_jax.toy import (
    EOS,
    PAD,
    START,
    B,
    beam_oracle,
    make_table,
    padded,
    penalty,
    toy_log_probs,
    toy_step,
)
from transformer_jax import SearchOptions, Translator, beam_search, generate
from transformer_jax.decoding import EndAtLimit, Phrases, Prefix, reordering

C, P = 3, 3


def padded_phrases(sentences, bucket=(C, P)):
    """As `Phrases.of`, but always of one shape."""
    ids, lengths = np.zeros((len(sentences), *bucket), np.int32), np.zeros((len(sentences), bucket[0]), np.int32)
    for row, own in enumerate(sentences):
        for i, phrase in enumerate(own):
            ids[row, i, : len(phrase)], lengths[row, i] = phrase, len(phrase)
    return Phrases(jnp.asarray(ids), jnp.asarray(lengths))


@functools.partial(jax.jit, static_argnums=2)
def search(table, sentences, options, phrases=None, constraints=(), limit_B=None):
    step = reordering(functools.partial(toy_step, table))
    rows = jnp.repeat(sentences, options.num_beams)
    return beam_search(step, rows, len(sentences), options, constraints, limit_B, phrases=phrases)


def matched(tokens, phrases):
    """How far tokens are with each phrase: cut behind what they have of its copies, and looked at from there."""
    found = []
    for i, phrase in enumerate(phrases):
        rest, missing = list(tokens), phrases[:i].count(phrase) + 1
        while missing and (
            ends := [e for e in range(len(phrase), len(rest) + 1) if rest[e - len(phrase) : e] == phrase]
        ):
            rest, missing = rest[ends[0] :], missing - 1
        begun = max(j for j in range(len(phrase)) if rest[len(rest) - j :] == phrase[:j])
        found.append(len(phrase) if missing == 0 else begun if missing == 1 else 0)
    return found


def contains(tokens, phrases):
    return matched(tokens, phrases) == [*map(len, phrases)]


def shared_out(phrases, options):
    """What the candidates of a search are sorted by."""

    def rank(candidates):
        banks = {}
        for total, ids in candidates:
            far = matched([*ids[1:]], phrases)
            missing = max([len(p) - m for p, m in zip(phrases, far, strict=True)], default=0)
            room = 0 if ids[-1] == options.eos_id else options.max_length - len(ids)
            if missing <= room and np.isfinite(total):
                whole = [m == len(p) for p, m in zip(phrases, far, strict=True)]
                begun = max([m for m, w in zip(far, whole, strict=True) if not w], default=0)
                bank = sum(m for m, w in zip(far, whole, strict=True) if w) + begun
                banks.setdefault(bank, []).append((total, ids))
        for bank in banks.values():
            bank.sort(key=lambda c: -c[0])
        rounds = itertools.zip_longest(*(banks[bank] for bank in sorted(banks, reverse=True)))
        taken = [sorted(filter(None, each), key=lambda c: -c[0]) for each in rounds]
        if taken:
            first = banks[max(banks)][0]
            taken[0] = [first, *(c for c in taken[0] if c is not first)]
        return [c for each in taken for c in each]

    return rank


words = st.sampled_from([0, START, 4, 5, 6])
phrase_lists = st.lists(st.lists(words, min_size=1, max_size=P), max_size=C)
seeds = st.integers(0, 2**31)
NARROW = SearchOptions(12, START, EOS, PAD, 4, 0.8, False, "paper")


@pytest.mark.parametrize("score", ["paper", "marian"])
@settings(deadline=None, max_examples=40, derandomize=True)
@given(seeds, st.lists(phrase_lists, min_size=B, max_size=B))
@example(215, [[[2]], [], []])  # where the best hypothesis is not the first
def test_it_is_the_search_written_down(score, seed, sentences):
    """Every output contains its phrases, sentences without any are searched as ever, none looks at the others."""
    table, options = make_table(seed), NARROW._replace(preset=score)
    ids, scores = search(table, jnp.arange(B), options, padded_phrases(sentences))
    plain = search(table, jnp.arange(B), options)
    for sentence, phrases in enumerate(sentences):
        expected = beam_oracle(toy_log_probs(table, sentence), options, shared_out(phrases, options))
        assert expected and all(contains(found[1:], phrases) for _, (*found,) in expected)
        for w, (total, found) in enumerate(expected):
            np.testing.assert_array_equal(ids[sentence, w], padded(found, options))
            np.testing.assert_allclose(scores[sentence, w], total, rtol=1e-5, atol=1e-5)
        assert np.isneginf(scores[sentence, len(expected) :]).all()
        if not phrases:
            np.testing.assert_array_equal(ids[sentence], plain[0][sentence])
            np.testing.assert_array_equal(scores[sentence], plain[1][sentence])


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seeds, st.lists(st.lists(st.sampled_from([0, START, 4]), min_size=1, max_size=2), min_size=1, max_size=2))
def test_a_beam_as_wide_as_everything_finds_the_best_that_contains_them(seed, phrases):
    table, options = make_table(seed, vocab=5), SearchOptions(6, START, EOS, PAD, 256, 0.7, "never")
    log_probs, every = toy_log_probs(table, 0), []

    def grow(prefix, total):
        if len(prefix) > 1 and (prefix[-1] == EOS or len(prefix) == options.max_length):
            if contains([*prefix[1:]], phrases):
                every.append((total / penalty(len(prefix) - 1, options), prefix))
            return
        for token, p in enumerate(log_probs(prefix)):
            grow((*prefix, token), total + p)

    grow((START,), 0.0)
    best_score, best = max(every)
    ids, scores = search(table, jnp.zeros(1, int), options, padded_phrases([phrases], (2, 2)))
    np.testing.assert_array_equal(ids[0, 0], padded(best, options))
    np.testing.assert_allclose(scores[0, 0], best_score, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seeds, st.lists(st.lists(words, min_size=1, max_size=P), min_size=1, max_size=C), words)
def test_there_is_an_output_wherever_there_is_room(seed, phrases, first):
    """However narrow the beam, behind a prefix, under a limit that leaves no token to choose."""
    table, options = make_table(seed), NARROW._replace(num_beams=2)
    constraints = (Prefix(jnp.array([[first]]), jnp.array([1])), EndAtLimit(EOS))
    limit = sum(map(len, phrases)) + 3  # and a start, a prefix, an end
    ids, _ = search(table, jnp.zeros(1, int), options, padded_phrases([phrases]), constraints, jnp.array([limit]))
    found = ids[0, 0, 1:limit].tolist()
    assert found[0] == first and EOS in found and contains(found[: found.index(EOS)], phrases)


def test_phrases_are_padded_to_few_shapes():
    ids, lengths = Phrases.of([[], [[3], [4, 5, 6]], [[7], [8], [9]]])
    assert ids.shape == (3, 4, 4)
    np.testing.assert_array_equal(lengths, [[0, 0, 0, 0], [1, 3, 0, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(ids[1, :2], [[3, 0, 0, 0], [4, 5, 6, 0]])
    assert Phrases.of([[], []]).ids_BCP.shape == (2, 1, 1)


# --- generate ----------------------------------------------------------------------------------------------------


def test_generate_puts_them_where_it_likes(tiny):
    sources, phrases = [[5, 6, 9, 7], [8, 4, 1, 0]], [[[3, 3], [9, 8, 7]], []]
    plain, found = (np.asarray(generate(*tiny, sources, max_length=12, phrases=p)) for p in (None, phrases))
    assert contains(found[0, 1:].tolist(), phrases[0]) and not contains(plain[0, 1:].tolist(), phrases[0])
    np.testing.assert_array_equal(found[1], plain[1])


@pytest.mark.parametrize(
    ("phrases", "words"),
    [
        ([[]], "phrases are of 1 rows, but input_ids of 2"),
        ([[], [[3], []]], r"phrases\[1\]: phrase 1 must be one id or more, not \[\]"),
        ([[], None], r"phrases\[1\]: give a list of phrases, not None"),
        ([[], [3]], r"phrases\[1\]: phrase 0 must be a list of ids, not 3"),
        ([[], [["a"]]], r"phrases\[1\]: phrase 0 must be one id or more, not \['a'\]"),
        ([[[3, 1]], []], r"phrases\[0\]: phrase 0 has the id 1, which is the end or padding"),
        ([[[0]], []], r"phrases\[0\]: phrase 0 has the id 0, which is the end or padding"),
        ([[[3, 11]], []], r"phrases\[0\]: phrase 0 has the id 11, but ids are from 0 to 10"),
        ([[[-1]], []], r"phrases\[0\]: phrase 0 has the id -1"),
        ([[[3] * 5, [4] * 6], []], r"phrases\[0\]: 2 phrases have 11 tokens, but there is room for 10"),
    ],
)
def test_phrases_that_cannot_be_are_refused(tiny, phrases, words):
    with pytest.raises(ValueError, match=words):
        generate(*tiny, [[5, 6], [7, 8]], max_length=12, phrases=phrases)
    with pytest.raises(ValueError, match="phrases need num_beams of 2 or more"):
        generate(*tiny, [[5, 6], [7, 8]], max_length=12, num_beams=1, phrases=[[], []])


# --- Translator --------------------------------------------------------------------------------------------------


def test_translations_contain_their_phrases():
    """Whatever stands beside them."""
    model, params = own_model(10, final_logits_bias=True)
    params["final_logits_bias"][1] = -1.0
    translate = Translator(model, params, Letters(), num_beams=4, batch_size=4, max_output_length=20)
    sentences, phrases = ["hgfe", "h", "abab", ""], [["ada", "dac"], [], ["c", "c"], []]
    outputs = translate(sentences, phrases=phrases)
    assert "ada" in outputs[0] and "dac" in outputs[0] and outputs[2].count("c") >= 2 and outputs[3] == ""
    assert translate(sentences[::-1], phrases=phrases[::-1]) == outputs[::-1]
    begun = translate.n_best(sentences, ["ad", "", "c", ""], phrases)
    assert all(each.text.startswith("ad") and "ada" in each.text and "dac" in each.text for each in begun[0])
    assert all(each.text.startswith("c") and each.text.count("c") >= 2 for each in begun[2]) and begun[2]


def test_phrases_of_a_translator_are_checked(tiny):
    class Unknowing(Letters):
        def unk_id(self):
            return 9

        def encode(self, text):
            return [1] if text == "</s>" else super().encode(text)

    translate = Translator(*tiny, Unknowing(), batch_size=2)
    wrong = r"phrases\[1\] has a phrase that cannot be in an output: "
    for phrases, words in (
        ([["a"]], "1 lists of phrases for 2 sentences: give one for each"),
        ("ab", "give a list of phrases for each sentence, not 'ab'"),
        ([[], "ab"], "give a list of phrases, not 'ab'"),
        ([[], ["a", 3]], r"phrases\[1\] must be a string, not 3"),
        ([[], ["a", ""]], rf"{wrong}phrase 1 must be one id or more, not \[\]"),
        ([[], ["</s>"]], f"{wrong}phrase 0 has the id 1, which is the end or padding"),
        ([[], ["abh"]], f"{wrong}the tokenizer does not know all of 'abh'"),
        ([[], ["a" * 30, "b" * 22]], f"{wrong}2 phrases have 52 tokens, but there is room for 51"),
    ):
        with pytest.raises(ValueError, match=words):
            translate(["ab", "cd"], phrases=phrases)
    with pytest.raises(ValueError, match=r"phrases\[0\] .* have 1 tokens, but there is room for 0"):
        translate(["", "cd"], phrases=[["a"], []])
    with pytest.raises(ValueError, match=r"2 phrases have 50 tokens, but there is room for 49"):
        translate(["ab", "cd"], ["", "ab"], [[], ["a" * 30, "b" * 20]])
    with pytest.raises(ValueError, match="phrases need num_beams of 2 or more"):
        Translator(*tiny, Letters(), num_beams=1)(["a"], phrases=[["b"]])
