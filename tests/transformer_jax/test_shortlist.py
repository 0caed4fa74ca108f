"""A short list of the vocabulary is the vocabulary without the rest; and where the lists come from."""

import dataclasses
import gzip

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transformer_jax.marian_folders import own_model, processor
from transformer_jax import SearchOptions, Translator
from transformer_jax.batches import Asked
from transformer_jax.chunks import ShortLists, decode
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
from transformer_jax.shortlist import ShortList, short_lists
from transformer_jax.tokenizer import pieces_of

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


# --- lists -------------------------------------------------------------------------------------------------------


def test_a_list_has_what_comes_of_the_words_of_a_source():
    table = ShortList({5: np.array([40, 30]), 6: np.array([30, 50]), 9: np.array([60])}, first=3, shared=False)
    assert table.ids([5, 6, 7], 100).tolist() == [0, 1, 2, 30, 40, 50]
    assert dataclasses.replace(table, shared=True).ids([5, 6, 7], 100).tolist() == [0, 1, 2, 5, 6, 7, 30, 40, 50]
    assert table.ids([], 2).tolist() == [0, 1]
    for wrong, words in (
        ([-1], r"targets\[4\] must be ids from 0, not \[-1\]"),
        ([0.5], "must be ids from 0"),
        (3, "must be ids"),
    ):
        with pytest.raises(ValueError, match=words):
            ShortList({4: wrong})
    with pytest.raises(ValueError, match="first must be an integer from 0"):
        ShortList({}, first=-1)


def test_the_lists_of_a_batch_have_few_widths():
    table = ShortList({5: np.arange(200, 400), 6: np.array([500])}, first=2)
    for sources, size in (([[5], [6]], 256), ([[6]], 128), ([[]], 128)):
        asked = [Asked(source, 9, [700], [[800, 801], [802]]) for source in sources]
        ids_N, is_own_BN = short_lists(table, asked, [900], 4, 1000)
        assert ids_N.shape == (size,) and is_own_BN.shape == (4, size) and (np.diff(ids_N) > 0).all()
        for source, own in zip(sources, is_own_BN, strict=False):
            assert ids_N[own].tolist() == [*table.ids(source, 1000), 700, 800, 801, 802, 900]
    alone = [Asked([5], 9, None, None)]
    assert short_lists(ShortList({}, first=2), alone, [1], 1, 100).ids_N.tolist() == [*range(100)]


class Signs:
    """A character is a token, from id 2 on."""

    def encode(self, text):
        return [ord(sign) - 0x4E00 for sign in text]

    def decode(self, ids):
        return "".join(chr(id_ + 0x4E00) for id_ in ids)


def test_a_translator_has_the_words_of_each_source_alone():
    """Scores and all, whatever stands beside it."""
    rng = np.random.default_rng(0)
    model, params = own_model(300, final_logits_bias=True)
    params["final_logits_bias"][1] = -2.0
    table = ShortList({id_: rng.integers(2, 300, 20) for id_ in range(2, 300)}, first=1, shared=False)
    options = {"num_beams": 2, "max_output_length": 12, "batch_size": 2}
    short = Translator(
        model, params, Signs(), shortlist=table, constraints=(RepetitionPenalty(2.0), ForcedStart(250)), **options
    )
    sources = [[77, 5, 200], [31]]
    sentences = [Signs().decode(source) for source in sources]
    together = short.n_best(sentences)
    for source, sentence, found in zip(sources, sentences, together, strict=True):
        own = {*table.ids(source, 300).tolist(), 1, 250}
        forbidden = Forbidden(tuple(sorted({*range(300)} - own)))
        plain = dataclasses.replace(short, shortlist=None, constraints=(forbidden, Renormalized(), *short.constraints))
        expected = plain.n_best([sentence, ""])[0]
        assert [each.ids for each in found] == [each.ids for each in expected] and len({*found[0].ids}) > 3
        np.testing.assert_allclose([each.score for each in found], [each.score for each in expected], rtol=1e-5)
    drawn = dataclasses.replace(short, constraints=()).sample(sentences, 2, prefixes=[Signs().decode([150]), ""])
    own = {*table.ids(sources[0], 300).tolist(), 1}
    assert 150 not in own and all(each.ids[0] == 150 and {*each.ids} <= own | {150} for each in drawn[0])


def test_what_does_not_go_with_a_short_list_is_refused(models):
    model, params = models[0]
    with pytest.raises(ValueError, match="shortlist must be a ShortList, not 'lex.gz'"):
        Translator(model, params, Signs(), shortlist="lex.gz")
    with pytest.raises(ValueError, match="the shortlist has the target id 24, but those of the model are below 24"):
        Translator(model, params, Signs(), shortlist=ShortList({3: np.array([1, 24])}))
    foreign = flax.struct.dataclass(type("Foreign", (), {"__call__": lambda self, scores_BWV, so_far: scores_BWV}))()
    with pytest.raises(ValueError, match="must know its columns"):
        Translator(model, params, Signs(), shortlist=ShortList({}), constraints=(foreign,))


# --- files -------------------------------------------------------------------------------------------------------

TABLE = """\
the e 0.5
o \u2581d 0.9
ck \u2581d 0.75

n \u2581d 0
e\t\u2581d\t0.75
NULL \u2581d 0.9
a NULL 1
o \u2581d 1e-2
r \u2581d 0.5
e zebra 0.5
"""


def test_a_table_is_read_as_marian_reads_it(tmp_path):
    (tmp_path / "lex").write_text(TABLE, encoding="utf-8")
    with pytest.warns(UserWarning, match=r"lex:1: the: 2 of 8 lines have words that the tokenizer does not") as told:
        table = ShortList.read(tmp_path / "lex", processor(), best=5, first=7)
    assert len(told) == 1 and (table.first, table.shared) == (7, True)
    ids = pieces_of(processor())
    best = [ids["ck"], ids["e"], ids["r"], ids["o"]]  # of equals the highest id comes first
    assert {source: found.tolist() for source, found in table.targets.items()} == {ids["\u2581d"]: best}
    with gzip.open(tmp_path / "lex.gz", "wb") as file:
        file.write("e \u2581d 0.4\no \u2581d 1\n".encode())
    short = ShortList.read(tmp_path / "lex.gz", processor(), best=1)
    assert short.targets[ids["\u2581d"]].tolist() == [ids["o"]] and short.first == 100


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a b 0.5\na b\n", "lex:2: 2 columns, but a line is a target word, a source word and a probability"),
        (b"a b c 0.5\n", "lex:1: 4 columns"),
        (b"a b c\n", "lex:1: 'c' is no number"),
        (b"a b nan\n", "lex:1: 'nan' is not from 0 to 1"),
        (b"a b 2\n", "lex:1: '2' is not from 0 to 1"),
        (b"a \xff 1\n", "lex:1: not UTF-8"),
        (b"", "lex: none of its 0 lines has two words that the tokenizer knows"),
        (b"x abc 1\n", "lex: none of its 1 lines has two words that the tokenizer knows"),
        (None, "lex cannot be read: No such file or directory"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "lex").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        ShortList.read(tmp_path / "lex", processor())
    (tmp_path / "lex.gz").write_bytes(b"a b 0.5\n")
    with pytest.raises(ValueError, match=r"lex.gz cannot be read: Not a gzipped file"):
        ShortList.read(tmp_path / "lex.gz", processor())
