"""Sentence pairs over a corpus whose tokens are all different, so that each token tells where it comes from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from train.data.documents import read_documents
from train.data.pretraining import SentencePairs, SentenceRows, TokenCorpus, can_pair, tokenize_corpus
from train.errors import InputError

CLS, SEP, PAD, FIRST = 1, 2, 0, 10


def corpus_of(documents: list[list[int]]) -> TokenCorpus:
    """A corpus of documents given as the lengths of their sentences."""
    lengths = [length for document in documents for length in document]
    return TokenCorpus(
        np.arange(FIRST, FIRST + sum(lengths), dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64),
    )


def pairs_of(corpus, max_length=32, seed=0, **options):
    return SentencePairs(corpus, max_length=max_length, cls_id=CLS, sep_id=SEP, pad_id=PAD, seed=seed, **options)


def halves(example):
    """(A, B) as lists of positions in the corpus, after a check of the frame around them."""
    ids, types, mask = (example[key].tolist() for key in ("input_ids", "token_type_ids", "attention_mask"))
    length = sum(mask)
    assert mask == [True] * length + [False] * (len(mask) - length)
    assert ids[0] == CLS and ids[length - 1] == SEP and ids[length:] == [PAD] * (len(ids) - length)
    middle = ids.index(SEP)
    assert types == [0] * (middle + 1) + [1] * (length - middle - 1) + [0] * (len(ids) - length)
    a, b = ids[1:middle], ids[middle + 1 : length - 1]
    assert a and b and min(a + b) >= FIRST
    return [token - FIRST for token in a], [token - FIRST for token in b]


documents_strategy = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=12), min_size=2, max_size=8).filter(
    lambda documents: max(map(len, documents)) > 1
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(documents_strategy, st.integers(5, 40), st.integers(0, 2**32 - 1))
def test_every_pair_is_what_its_label_says(documents, max_length, seed):
    corpus = corpus_of(documents)
    sentence_of = np.repeat(np.arange(len(corpus.sentence_starts) - 1), np.diff(corpus.sentence_starts))
    document_of = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
    pairs = pairs_of(corpus, max_length, seed, duplicates=2)
    assert len(pairs) >= 2 * len(documents)
    for index in range(len(pairs)):
        example = pairs[index]
        a, b = halves(example)
        for half in (a, b):
            assert half == list(range(half[0], half[-1] + 1))
            assert len(set(document_of[half])) == 1
        same = document_of[a[0]] == document_of[b[0]]
        label = example["next_sentence_label"]
        assert label.dtype == np.int32 and label.shape == ()
        assert same == (label == 0)
        if len(a) + len(b) < max_length - 3:  # nothing was cut: whole sentences, and B follows A directly
            for half in (a, b):
                assert half[0] in corpus.sentence_starts and half[-1] + 1 in corpus.sentence_starts
            assert label == 1 or b[0] == a[-1] + 1
        elif label == 0:
            assert b[0] > a[-1]
            assert sentence_of[b[0]] > sentence_of[a[-1]]


def test_every_sentence_is_used_in_every_pass():
    corpus = corpus_of([[5] * 40, [7] * 30, [3]])
    pairs = pairs_of(corpus, 64, duplicates=1)
    # Unused sentences are put back: the A's and following B's cover the corpus without a gap.
    covered = [
        set(a) | (set(b) if example["next_sentence_label"] == 0 else set())
        for example in pairs
        for a, b in [halves(example)]
    ]
    used = set().union(*covered)
    assert len(used) > 0.9 * len(corpus.tokens)  # the rest was cut off


def test_half_are_random_and_a_tenth_short():
    corpus = corpus_of([[5] * 400] * 20)
    pairs = pairs_of(corpus, 64, duplicates=2)
    labels = [int(pairs[index]["next_sentence_label"]) for index in range(len(pairs))]
    assert 0.46 < np.mean(labels) < 0.56
    lengths = np.array([pairs[index]["attention_mask"].sum() for index in range(len(pairs))])
    assert 0.04 < np.mean(lengths < 55) < 0.16
    full = pairs_of(corpus, 64, duplicates=2, short_probability=0.0)
    middle_of_a_document = [full[index]["attention_mask"].sum() for index in range(0, len(full), 7)]
    assert np.mean(np.array(middle_of_a_document) == 64) > 0.9


def test_balance_over_many_instances():
    corpus = corpus_of([[5] * 1000] * 25)  # 125,000 tokens
    pairs = pairs_of(corpus, 64, duplicates=5)
    labels = np.array([int(pairs[index]["next_sentence_label"]) for index in range(len(pairs))])
    # A half by a coin; what is left of a document, 25 times in each pass, has nothing that follows.
    error = 5 * (0.25 / len(pairs)) ** 0.5
    assert abs(labels.mean() - 0.5) < error + 125 / len(pairs)
    # What follows B never depends on the coin before: no runs.
    agree = np.mean(labels[1:] == labels[:-1])
    assert abs(agree - 0.5) < error + 125 / len(pairs)
    # Where B is random, it comes from all other documents alike.
    document = np.repeat(np.arange(25), 5000)
    strangers = np.bincount([document[halves(pairs[i])[1][0]] for i in np.flatnonzero(labels)], minlength=25)
    expected = labels.sum() / 25
    assert np.abs(strangers - expected).max() < 5 * expected**0.5


def test_truncation_cuts_front_and_back_of_the_longer_side():
    corpus = corpus_of([[100, 100]] * 30)
    cut_front, cut_back = [], []
    pairs = pairs_of(corpus, 83, duplicates=1, short_probability=0.0)
    for index in range(len(pairs)):
        for half in halves(pairs[index]):
            assert len(half) == 40
            cut_front.append(half[0] % 100)
            cut_back.append(99 - half[-1] % 100)
    assert 25 < np.mean(cut_front) < 35 and 25 < np.mean(cut_back) < 35
    assert np.std(cut_front) > 1


def test_seed_decides_and_passes_differ():
    corpus = corpus_of([[4] * 30, [6] * 30])
    plans = [pairs_of(corpus, seed=seed)._plan for seed in (0, 0, 1)]
    assert np.array_equal(plans[0], plans[1])
    assert not np.array_equal(plans[0][: len(plans[2])], plans[2][: len(plans[0])])
    one, two = pairs_of(corpus, duplicates=1)._plan, pairs_of(corpus, duplicates=2)._plan
    assert np.array_equal(two[: len(one)], one)
    assert not np.array_equal(two[len(one) :], one)


def test_one_document_or_no_room_is_an_error():
    for documents in ([], [[3, 4]], [[3], [4], [5]]):  # of single sentences only, every B would come from elsewhere
        assert not can_pair(corpus_of(documents))
        with pytest.raises(InputError, match=f"{sum(map(len, documents))} sentences in {len(documents)} documents"):
            pairs_of(corpus_of(documents))
    assert can_pair(corpus_of([[3, 1], [4]]))
    with pytest.raises(InputError, match=r"^--eval\.data: next-sentence prediction needs two or more documents"):
        pairs_of(corpus_of([[3, 4]]), option="--eval.data")
    with pytest.raises(InputError, match="--max-length 4"):
        pairs_of(corpus_of([[3, 1], [4]]), max_length=4)


def rows_of(corpus, max_length=32, **options):
    return SentenceRows(corpus, max_length=max_length, cls_id=CLS, sep_id=SEP, pad_id=PAD, **options)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=8), st.integers(3, 40))
def test_rows_hold_each_token_once_in_whole_sentences_of_one_document(documents, max_length):
    corpus = corpus_of(documents)
    room = max_length - 2
    rows = rows_of(corpus, max_length)
    ends_of_documents = set(corpus.sentence_starts[corpus.document_starts].tolist())
    document_of = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
    seen = []
    for index in range(len(rows)):
        row = rows[index]
        assert set(row) == {"input_ids", "token_type_ids", "attention_mask"}
        assert [row[key].dtype for key in ("input_ids", "token_type_ids", "attention_mask")] == [np.int32] * 2 + [bool]
        ids, mask, length = row["input_ids"].tolist(), row["attention_mask"].tolist(), row["attention_mask"].sum()
        assert len(ids) == len(mask) == max_length and not row["token_type_ids"].any()
        assert mask == [True] * length + [False] * (max_length - length) and ids[length:] == [PAD] * (
            max_length - length
        )
        assert ids[0] == CLS and ids[length - 1] == SEP
        tokens = np.asarray(ids[1 : length - 1]) - FIRST
        assert len(set(document_of[tokens])) == 1
        seen.extend(tokens.tolist())
        end = tokens[-1] + 1
        if end in corpus.sentence_starts:  # the next sentence would not have found room
            following = corpus.sentence_starts[corpus.sentence_starts > end]
            assert end in ends_of_documents or len(tokens) + following[0] - end > room
        else:  # a piece of a sentence that fills whole rows
            assert len(tokens) == room
            first = corpus.sentence_starts[corpus.sentence_starts < end][-1]
            assert first <= tokens[0]
    assert seen == list(range(len(corpus.tokens)))


def test_rows_without_tokens_or_room_are_an_error():
    with pytest.raises(InputError, match=r"^--eval\.data: .*no token"):
        rows_of(corpus_of([]), option="--eval.data")
    with pytest.raises(InputError, match="--max-length 2"):
        rows_of(corpus_of([[3]]), max_length=2)
    assert len(rows_of(corpus_of([[3]]), max_length=3)) == 3


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate("abcdefgh")}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(2)
    return tokenizer


def test_corpus_is_flat_without_empty_sentences_or_documents(tokenizer):
    corpus = tokenize_corpus([["b c d", " "], ["\t"], [], ["e", "f g"]], tokenizer)
    assert [part.dtype for part in corpus[:3]] == [np.int32, np.int64, np.int64]
    assert corpus.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert corpus.sentence_starts.tolist() == [0, 3, 4, 6]
    assert corpus.document_starts.tolist() == [0, 1, 3]
    assert corpus.dropped == 2
    assert tokenizer.padding and tokenizer.truncation  # the caller's tokenizer stays as it was
    empty = tokenize_corpus([], tokenizer)
    assert [part.tolist() for part in empty[:3]] == [[], [0], [0]] and empty.dropped == 0


def test_books(shared_data, tokenizer):
    names = ("sherlock_holmes", "moby_dick")
    documents = read_documents([str(shared_data / "books" / f"{name}.txt.gz") for name in names]).documents
    corpus = tokenize_corpus(documents, tokenizer)
    pairs = pairs_of(corpus, 128, duplicates=1)
    assert len(pairs) > 0.5 * len(corpus.tokens) / 128
    labels = [int(pairs[index]["next_sentence_label"]) for index in range(0, len(pairs), 5)]
    assert 0.4 < np.mean(labels) < 0.6
