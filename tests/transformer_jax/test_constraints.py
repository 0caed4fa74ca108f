"""Constraints against loops over prefixes, against transformers' own, and the draws of sampling against chance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.transformer_jax.toy import EOS, PAD, START, B, V, beam_oracle, make_table, toy_log_probs, toy_step
from transformer_jax import SearchOptions, beam_search, greedy_search
from transformer_jax.decoding import (
    EndAtLimit,
    Forbidden,
    ForcedStart,
    MinimumLength,
    NoRepeatedNgram,
    Prefix,
    Renormalized,
    RepetitionPenalty,
    SoFar,
    Temperature,
    TopK,
    TopP,
    ensemble,
    reordering,
    sample,
)

W, T, WORDS, LENGTH = 3, 9, 13, 6
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, WORDS, (2, W, T)).astype(np.int32)
IDS[0, 0, :LENGTH] = [2, 3, 4, 2, 3, 3]
IDS[1, 2, :LENGTH] = [5, 5, 5, 5, 5, 5]
SCORES = np.log(RNG.dirichlet(np.ones(WORDS) / 2, (2, W))).astype(np.float32).clip(-30)
SO_FAR = SoFar(jnp.asarray(IDS), jnp.int32(LENGTH), jnp.array([T, LENGTH + 1]))


def repetition(scores, prefix):
    return [s if v not in prefix else s * 1.7 if s < 0 else s / 1.7 for v, s in enumerate(scores)]


def ngrams(n):
    def constrain(scores, prefix):
        grams = [tuple(prefix[i : i + n]) for i in range(len(prefix) - n + 1)]
        ahead = [(*prefix[len(prefix) - n + 1 :], v) for v in range(len(scores))]
        return [-np.inf if gram in grams else s for gram, s in zip(ahead, scores, strict=True)]

    return constrain


def top_p(p):
    def constrain(scores, _):
        order = np.argsort(-scores, kind="stable")
        chances = np.exp(scores[order].astype(np.float64))
        kept = order[: int(np.searchsorted(np.cumsum(chances / chances.sum()), p)) + 1]
        return [s if v in kept else -np.inf for v, s in enumerate(scores)]

    return constrain


ORACLES = {
    "forbidden": (Forbidden((0, 12)), lambda scores, _: [-np.inf, *scores[1:12], -np.inf]),
    "long enough": (MinimumLength(LENGTH, EOS), lambda scores, _: scores),
    "too short": (MinimumLength(LENGTH + 1, EOS), lambda scores, _: [scores[0], -np.inf, *scores[2:]]),
    "repetition": (RepetitionPenalty(1.7), repetition),
    "unigrams": (NoRepeatedNgram(1), ngrams(1)),
    "bigrams": (NoRepeatedNgram(2), ngrams(2)),
    "trigrams": (NoRepeatedNgram(3), ngrams(3)),
    "longer than what there is": (NoRepeatedNgram(LENGTH + 1), lambda scores, _: scores),
    "longer than anything": (NoRepeatedNgram(2**31 - 1), lambda scores, _: scores),
    "renormalized": (Renormalized(), lambda scores, _: scores - np.log(np.exp(scores.astype(np.float64)).sum())),
    "temperature": (Temperature(0.3), lambda scores, _: scores / 0.3),
    "top k": (TopK(3), lambda scores, _: [s if s >= np.sort(scores)[-3] else -np.inf for s in scores]),
    "all of them": (TopK(50), lambda scores, _: scores),
    "top p": (TopP(0.8), top_p(0.8)),
    "nearly nothing": (TopP(1e-6), top_p(1e-6)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_what_a_constraint_does(name):
    constraint, oracle = ORACLES[name]
    found = jax.jit(lambda scores: constraint(scores, SO_FAR))(SCORES)
    for b, w in itertools.product(range(2), range(W)):
        expected = oracle(SCORES[b, w], IDS[b, w, :LENGTH].tolist())
        np.testing.assert_allclose(found[b, w], expected, rtol=1e-6, err_msg=f"{b} {w}")


def test_the_first_token_can_be_forced():
    first = ForcedStart(4)(jnp.asarray(SCORES), SO_FAR._replace(length=jnp.int32(1)))
    np.testing.assert_array_equal(first, np.broadcast_to(np.where(np.arange(WORDS) == 4, 0, -np.inf), SCORES.shape))
    np.testing.assert_array_equal(ForcedStart(4)(jnp.asarray(SCORES), SO_FAR), SCORES)


def test_the_end_at_the_limit():
    found = EndAtLimit(EOS)(jnp.asarray(SCORES), SO_FAR)
    np.testing.assert_array_equal(found[0], SCORES[0])  # which has room for more
    np.testing.assert_array_equal(found[1], np.broadcast_to(np.where(np.arange(WORDS) == EOS, 0, -np.inf), (W, WORDS)))


def test_tokens_of_a_prefix_that_are_left_are_the_only_ones():
    ids = jnp.array([[3, 4, 5, 6, 7, 8, 9], [9, 9, 9, 9, 9, 9, 9]])
    found = Prefix(ids, jnp.array([6, 5]))(jnp.asarray(SCORES), SO_FAR)
    np.testing.assert_array_equal(np.isfinite(found[0]), np.broadcast_to(np.arange(WORDS) == 8, (W, WORDS)))
    np.testing.assert_array_equal(found[1], SCORES[1])  # which is past its prefix


@pytest.mark.parametrize(
    ("constraint", "values"),
    [
        (TopK, [0, -1, 2.0, None]),
        (TopP, [0, 1.1, "0.5", np.nan]),
        (Temperature, [0, -1.0, np.inf]),
        (RepetitionPenalty, [0, -1.0, np.nan]),
        (NoRepeatedNgram, [0, -1, 1.5]),
        (Forbidden, [3, (-1,), ("a",)]),
        (EndAtLimit, [-1, None]),
    ],
)
def test_what_makes_no_constraint_is_refused(constraint, values):
    for value in values:
        with pytest.raises(ValueError, match="must be"):
            constraint(value)


# --- transformers ------------------------------------------------------------------------------------------------


def test_they_are_those_of_transformers(peers):
    torch, _ = peers
    from transformers.generation import logits_process as theirs

    cases = [
        (RepetitionPenalty(1.3), theirs.RepetitionPenaltyLogitsProcessor(1.3)),
        (NoRepeatedNgram(2), theirs.NoRepeatNGramLogitsProcessor(2)),
        (NoRepeatedNgram(3), theirs.NoRepeatNGramLogitsProcessor(3)),
        (MinimumLength(LENGTH + 1, EOS), theirs.MinLengthLogitsProcessor(LENGTH + 1, EOS)),
        (MinimumLength(LENGTH, EOS), theirs.MinLengthLogitsProcessor(LENGTH, EOS)),
        (Forbidden((0, 5)), theirs.NoBadWordsLogitsProcessor([[0], [5]], eos_token_id=EOS)),
        (ForcedStart(3), theirs.ForcedBOSTokenLogitsProcessor(3)),
        (EndAtLimit(EOS), theirs.ForcedEOSTokenLogitsProcessor(LENGTH + 1, EOS)),
        (Renormalized(), theirs.LogitNormalization()),
        (Temperature(0.4), theirs.TemperatureLogitsWarper(0.4)),
        (TopK(4), theirs.TopKLogitsWarper(4)),
        *((TopP(p), theirs.TopPLogitsWarper(p)) for p in (0.05, 0.5, 0.9, 1.0)),
    ]
    so_far = SO_FAR._replace(limit_B=jnp.full(2, LENGTH + 1))
    prefixes = torch.from_numpy(IDS[:, :, :LENGTH].reshape(-1, LENGTH).astype(np.int64))
    for ours, other in cases:
        found = np.asarray(ours(jnp.asarray(SCORES), so_far)).reshape(-1, WORDS)
        expected = other(prefixes, torch.from_numpy(SCORES.reshape(-1, WORDS).copy())).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=str(ours))


# --- in a search -------------------------------------------------------------------------------------------------


def constrained(log_probs, change):
    return lambda prefix: np.asarray(change(log_probs(prefix), prefix), np.float64)


CONSTRAINED = {
    "no bigram twice": ((NoRepeatedNgram(2),), ngrams(2)),
    "at least 5": (
        (MinimumLength(5, EOS),),
        lambda scores, prefix: [-np.inf if v == EOS and len(prefix) < 5 else s for v, s in enumerate(scores)],
    ),
    "a prefix": (
        (Prefix(jnp.array([[4, 0, 5]] * B), jnp.array([3] * B)),),
        lambda scores, prefix: [
            s if len(prefix) > 3 or v == (4, 0, 5)[len(prefix) - 1] else -np.inf for v, s in enumerate(scores)
        ],
    ),
}


@pytest.mark.parametrize("name", CONSTRAINED)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_constrained_search_is_that_of_the_constrained_model(name, num_beams):
    constraints, change = CONSTRAINED[name]
    options = SearchOptions(8, START, EOS, PAD, num_beams)
    table = make_table(5)
    step = reordering(lambda ids_R, hash_R: toy_step(jnp.asarray(table), ids_R, hash_R))
    rows = jnp.repeat(jnp.arange(B), num_beams)
    if num_beams == 1:
        ids_BWT = greedy_search(step, rows, B, options, constraints)[:, None]
    else:
        ids_BWT, scores_BW = beam_search(step, rows, B, options, constraints)
    for sentence in range(B):
        log_probs = constrained(toy_log_probs(table, sentence), change)
        expected = beam_oracle(log_probs, options)
        for w, (score, ids) in enumerate(expected):
            if not np.isfinite(score):
                continue
            assert ids_BWT[sentence, w, : len(ids)].tolist() == list(ids)
            if num_beams > 1:
                np.testing.assert_allclose(scores_BW[sentence, w], score, rtol=1e-4)


def test_an_output_has_a_limit_of_its_own():
    table = make_table(3)
    table[:, EOS] = -9.0
    step = reordering(lambda ids_R, hash_R: toy_step(jnp.asarray(table), ids_R, hash_R))
    options = SearchOptions(8, START, EOS, PAD, 2)
    limit_B = jnp.array([3, 8, 1])
    ids_BWT, _ = beam_search(step, jnp.repeat(jnp.arange(B), 2), B, options, limit_B=limit_B)
    assert ((np.asarray(ids_BWT[:2, 0]) != PAD).sum(axis=1) <= limit_B[:2]).all() and (ids_BWT[2, 0, 1:] == PAD).all()
    for sentence, limit in ((0, 3), (1, 8)):
        (_, ids), *_ = beam_oracle(toy_log_probs(table, sentence), options._replace(max_length=limit))
        assert ids_BWT[sentence, 0, :limit].tolist() == list(ids)


def test_models_that_decide_together_have_the_mean_of_their_probabilities():
    tables = [make_table(seed) for seed in (1, 2)]
    steps = [reordering(lambda ids, state, t=t: toy_step(jnp.asarray(t), ids, state)) for t in tables]
    options = SearchOptions(8, START, EOS, PAD, 3)
    rows = jnp.repeat(jnp.arange(B), 3)
    ids_BWT, _ = beam_search(ensemble(steps), (rows, rows), B, options)
    for sentence in range(B):
        both = [toy_log_probs(table, sentence) for table in tables]
        expected = beam_oracle(lambda prefix, both=both: np.log(np.mean([np.exp(f(prefix)) for f in both], 0)), options)
        assert [row[: len(ids)].tolist() for row, (_, ids) in zip(ids_BWT[sentence], expected, strict=True)] == [
            list(ids) for _, ids in expected
        ]
    alone = beam_search(steps[0], rows, B, options)
    for one, two in zip(alone, beam_search(ensemble(steps[:1]), (rows,), B, options), strict=True):
        np.testing.assert_array_equal(one, two)


# --- draws -------------------------------------------------------------------------------------------------------


def draws(constraints, count, seed=0, sentences=(0, 1)):
    """The first two tokens of so many outputs of each sentence [B, count, 2], and their log-probabilities."""
    table = jnp.asarray(make_table(11))
    step = reordering(lambda ids_R, hash_R: toy_step(table, ids_R, hash_R))
    options = SearchOptions(3, START, EOS, PAD, count)
    rows = jnp.repeat(jnp.array(sentences), count)
    run = jax.jit(lambda key: sample(step, rows, key, len(sentences), options, constraints))
    ids, scores = run(jax.random.key(seed))
    return np.asarray(ids[:, :, 1:]), np.asarray(scores)


@pytest.mark.parametrize(
    ("constraints", "change"),
    [
        ((), lambda p: p),
        ((Temperature(0.5),), lambda p: p**2),
        ((TopK(3),), lambda p: p * (p >= np.sort(p)[-3])),
        ((TopP(0.95),), lambda p: np.exp(top_p(0.95)(np.log(p), ()))),
        ((Temperature(2.0), TopK(4)), lambda p: np.sqrt(p) * (p >= np.sort(p)[-4])),
    ],
    ids=["plain", "temperature", "top k", "top p", "both"],
)
def test_outputs_are_drawn_from_the_models_distribution(constraints, change):
    """Pearson's test at the first token and, behind the commonest one, at the second; one chance in 10,000 to fail."""
    ids_BWN, scores_BW = draws(constraints, 1000, sentences=[0, 0, 0, 0, 1, 1, 1, 1])
    ids_BWN, scores_BW = ids_BWN.reshape(2, 4000, 2), scores_BW.reshape(2, 4000)
    for sentence in range(2):
        log_probs = toy_log_probs(make_table(11), sentence)
        first, second = ids_BWN[sentence].T
        likeliest = np.bincount(first[first != EOS]).argmax()
        for tokens, prefix in ((first, (START,)), (second[first == likeliest], (START, likeliest))):
            chances = change(np.exp(log_probs(prefix)))
            chances /= chances.sum()
            counts = np.bincount(tokens, minlength=V)
            assert (counts[chances == 0] == 0).all()
            possible = chances > 0
            test = scipy.stats.chisquare(counts[possible], chances[possible] * len(tokens))
            assert test.pvalue > 1e-4, (counts, chances)
        for (one, two), score in zip(ids_BWN[sentence, :50], scores_BW[sentence], strict=False):
            more = 0.0 if one == EOS else log_probs((START, one))[two]
            np.testing.assert_allclose(score, log_probs((START,))[one] + more, atol=1e-4)  # without the constraints


def test_draws_are_a_function_of_the_key_and_the_row():
    first, again, other = draws((), 50)[0], draws((), 50)[0], draws((), 50, seed=1)[0]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(draws((), 50, sentences=[0])[0][0], first[0])  # whatever is beside it
