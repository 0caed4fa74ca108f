"""A short list of the vocabulary is the vocabulary without the rest; and where the lists come from."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transformer_jax.marian_folders import own_model
from transformer_jax import SearchOptions
from transformer_jax.decoding import (
    BeamSearch,
    EndAtLimit,
    Forbidden,
    ForcedStart,
    GreedySearch,
    MinimumLength,
    NoRepeatedNgram,
    Phrases,
    Prefix,
    Renormalized,
    RepetitionPenalty,
    Sampling,
)
from transformer_jax.pieces import ShortLists, decode

V, LIMIT = 24, 12
SOURCES = np.array([[5, 6, 9, 1], [8, 4, 1, 0], [20, 1, 0, 0]])
LISTS = [[1, 2, 3, 7, 11, 15, 22, 23], [0, 1, 4, 5, 6, 7, 11, 19, 20], [1, 3, 7, 8, 11, 12, 13, 14, 15, 16, 17]]


@pytest.fixture(scope="module")
def models():
    """Two, with and without a table of its own behind the decoder."""
    tied, others = own_model(V, final_logits_bias=True), own_model(V, tie_word_embeddings=False)
    tied[1]["final_logits_bias"][1] = -1.0  # outputs that are not empty
    return tied, others


@flax.struct.dataclass
class Only:
    """All words but a sentence's own are forbidden."""

    is_own_BV: jax.Array

    def __call__(self, scores_BWV, so_far):
        return jnp.where(self.is_own_BV[:, None], scores_BWV, -jnp.inf)


def run(models, search, constraints, phrases=None, short=None):
    sources, keys = jnp.asarray(SOURCES), jax.random.split(jax.random.key(3), 3)
    of = (tuple(model for model, _ in models), search, tuple(params for _, params in models))
    phrases = None if phrases is None else Phrases.of(phrases)
    return decode(*of, sources, sources != 0, jnp.full(3, LIMIT), constraints, keys, phrases=phrases, short=short)


BEAM = SearchOptions(LIMIT, 0, 1, 0, 3)
SEARCHES = {
    "two models": (BeamSearch(BEAM), (), None),
    "what knows ids": (
        BeamSearch(BEAM),
        (RepetitionPenalty(1.5), NoRepeatedNgram(2), Forbidden((3, 15)), MinimumLength(6, 1), EndAtLimit(1)),
        None,
    ),
    "phrases": (BeamSearch(BEAM), (ForcedStart(7),), [[[11, 11]], [[20, 4], [4, 19]], []]),
    "a prefix": (
        GreedySearch(BEAM._replace(num_beams=1)),
        (Prefix(jnp.array([[22, 7], [20, 7], [16, 14]]), jnp.array([2, 0, 2])), NoRepeatedNgram(1)),
        None,
    ),
    "sampling": (Sampling(BEAM), (), None),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_short_list_is_the_vocabulary_without_the_rest(models, name):
    """With all words nothing changes. With some, the others are forbidden, and the probabilities shared out anew."""
    search, constraints, phrases = SEARCHES[name]
    models = models[:1] if name != "two models" else models
    whole = run(models, search, constraints, phrases)
    order = np.random.default_rng(0).permutation(V)
    every = run(models, search, constraints, phrases, ShortLists(order, jnp.ones((3, V), bool)))
    np.testing.assert_array_equal(every[0], whole[0])
    np.testing.assert_allclose(every[1], whole[1], rtol=1e-5)
    if name == "two models":  # each of which shares its own probabilities out: no constraint on their mean does that
        return
    ids_N = np.unique(np.concatenate([*LISTS, [21]]))  # 21 is nobody's
    is_own_BN, is_own_BV = (jnp.asarray([np.isin(ids, own) for own in LISTS]) for ids in (ids_N, np.arange(V)))
    ids, scores = run(models, search, constraints, phrases, ShortLists(ids_N, is_own_BN))
    expected, wanted = run(models, search, (Only(is_own_BV), Renormalized(), *constraints), phrases)
    assert (ids != whole[0]).any()
    np.testing.assert_array_equal(ids, expected)
    if isinstance(search, BeamSearch):  # scores of the others are without constraints
        np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_constraints_that_know_no_columns_are_refused(models):
    short = ShortLists(np.arange(4), jnp.ones((3, 4), bool))
    with pytest.raises(ValueError, match=r"must know its columns, see SoFar.column: \[Only.* do not say"):
        run(models, BeamSearch(BEAM), (Only(jnp.ones((3, 4), bool)),), short=short)
    with pytest.raises(ValueError, match="phrases need beam search"):
        run(models, Sampling(BEAM), (), phrases=[[], [], []])
    with pytest.raises(ValueError, match="a short list is of ids below 24 that differ"):
        run(models, BeamSearch(BEAM), (), short=short._replace(ids_N=np.array([1, 2, 3, 3])))
