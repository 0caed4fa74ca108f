import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from train.metrics import (
    accuracy,
    binary_scores,
    bleu_by_kind,
    confusion_matrix,
    corpus_scores,
    joint_scores,
    macro_scores,
    matthews,
    multi_label_scores,
    pearson,
    spearman,
    tagging_scores,
)


def test_perfect_translations_score_100_and_signatures_say_how():
    sentences = ["Das Treffen beginnt am 3. März 2024.", "Es ist jetzt 14:05 Uhr."]
    scores = corpus_scores(sentences, sentences)
    assert set(scores) == {f"{name}{of}" for name in ("bleu", "chrf", "chrf++", "ter") for of in ("", "_signature")}
    assert scores["bleu"] == pytest.approx(100) and scores["chrf"] == pytest.approx(100) and scores["ter"] == 0
    assert "tok:13a" in scores["bleu_signature"] and "smooth:exp" in scores["bleu_signature"]
    assert "nc:6" in scores["chrf_signature"] and "nrefs:1" in scores["chrf_signature"]


REFERENCES = [
    "Das Treffen beginnt am 3. März 2024 um 14 Uhr.",
    "Die kleine Katze schläft auf dem alten Sofa.",
    "Er kaufte drei Äpfel, zwei Birnen und ein Brot.",
    '"Wo bist du?", fragte sie leise.',
]
TRANSLATIONS = [
    "Am 3. März 2024 beginnt das Treffen um 14 Uhr.",
    "Die kleine Katze schläft auf dem Sofa.",
    "Er kaufte zwei Birnen, drei Äpfel und ein Brot.",
    'Sie fragte leise: "Wo bist du?"',
]


def test_the_figures_of_sacrebleus_own_command():
    """Of `sacrebleu REFERENCES -i TRANSLATIONS -m bleu chrf ter -w 6`, and with --chrf-word-order 2; version 2.6.0."""
    scores = corpus_scores(TRANSLATIONS, REFERENCES)
    figures = {"bleu": 49.649577, "chrf": 73.800710, "chrf++": 72.561598, "ter": 33.333333}
    assert {name: scores[name] for name in figures} == pytest.approx(figures, abs=1e-6)  # as many digits as it gives
    signatures = {
        "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:",
        "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:",
        "chrf++": "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:",
        "ter": "nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:",
    }
    assert all(scores[f"{name}_signature"].startswith(signature) for name, signature in signatures.items())
    by_kind = bleu_by_kind(TRANSLATIONS, REFERENCES, ["a-b", "a-b", "b-a", "b-a"])
    assert by_kind == pytest.approx({"": 49.649577, "a-b": 54.422198, "b-a": 44.929380}, abs=1e-6)
    assert [*bleu_by_kind(TRANSLATIONS, REFERENCES, ["a-b"] * 4)] == [""]


def test_ter_is_left_out_where_it_would_take_hours():
    long = ["word " * 1500]
    assert "ter" not in corpus_scores(long, long) and "chrf" in corpus_scores(long, long)
    assert set(corpus_scores(long, long, ["bleu"])) == {"bleu", "bleu_signature"}


def test_bleu_by_hand():
    # Precisions 5/6, 3/5, 2/4, 1/3 of 1- to 4-grams, no brevity penalty.
    scores = corpus_scores(["the cat sat on the mat"], ["the cat lay on the mat"])
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)


def test_hypothesis_and_reference_are_not_the_same_argument():
    # A short translation is punished by the brevity penalty, a long one by its precisions 5/8, 4/7, 3/6, 2/5.
    long, short = "one two three four five six seven eight", "one two three four five"
    assert corpus_scores([short], [long])["bleu"] == pytest.approx(100 * 2.718281828 ** (1 - 8 / 5))
    assert corpus_scores([long], [short])["bleu"] == pytest.approx(100 * (5 / 8 * 4 / 7 * 3 / 6 * 2 / 5) ** 0.25)


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], ["a", "b"])])
def test_lists_that_do_not_fit(hypotheses, references):
    with pytest.raises(ValueError, match="references"):
        corpus_scores(hypotheses, references)


# --- classes -----------------------------------------------------------------------------------------------------

CLASSES = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), min_size=1, max_size=30).map(lambda pairs: (n, pairs))
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(CLASSES)
def test_scores_of_classes_are_scikit_learns(made):
    num_labels, pairs = made
    predicted, expected = zip(*pairs, strict=True)
    confusion = confusion_matrix(predicted, expected, num_labels)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(
        confusion, sklearn.metrics.confusion_matrix(expected, predicted, labels=range(num_labels))
    )
    assert accuracy(predicted, expected) == pytest.approx(sklearn.metrics.accuracy_score(expected, predicted))
    score = sklearn.metrics.precision_recall_fscore_support
    macro = score(expected, predicted, average="macro", zero_division=0)[:3]
    assert macro_scores(confusion) == pytest.approx(macro)
    one = score(expected, predicted, labels=[1], average=None, zero_division=0)[:3]
    assert binary_scores(confusion) == pytest.approx([float(value[0]) for value in one])
    assert binary_scores(confusion, 0).recall == pytest.approx(np.mean([p == 0 for p, e in pairs if e == 0] or [0.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        correlation = sklearn.metrics.matthews_corrcoef(expected, predicted)
    assert matthews(confusion) == pytest.approx(correlation, abs=1e-12)


def test_scores_of_two_classes_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    confusion = confusion_matrix([1] * 3 + [1] + [0] * 2 + [0] * 4, [1] * 3 + [0] + [1] * 2 + [0] * 4, 2)
    assert confusion.tolist() == [[4, 1], [2, 3]]
    assert binary_scores(confusion) == pytest.approx((3 / 4, 3 / 5, 2 / 3))
    assert matthews(confusion) == pytest.approx((3 * 4 - 1 * 2) / (4 * 5 * 5 * 6) ** 0.5)
    assert macro_scores(confusion).f1 == pytest.approx((2 / 3 + 8 / 11) / 2)


def test_one_class_is_no_reason_to_warn():
    confusion = confusion_matrix([0, 0, 0], [0, 0, 0], 3)
    assert matthews(confusion) == 0.0 and binary_scores(confusion) == (0, 0, 0) and macro_scores(confusion) == (1, 1, 1)
    assert matthews(confusion_matrix([0, 0], [0, 1], 2)) == 0.0
    assert macro_scores(np.zeros((2, 2), int)) == (0, 0, 0)
    assert matthews(confusion_matrix([0, 1] * 10**6, [0, 1] * 10**6, 2)) == 1.0


@pytest.mark.parametrize(("predicted", "expected"), [([], []), ([0], [0, 1]), ([[0]], [[0]]), ([2], [0]), ([0], [-1])])
def test_ids_that_are_none(predicted, expected):
    with pytest.raises(ValueError, match="must"):
        confusion_matrix(predicted, expected, 2)
    with pytest.raises(ValueError, match="integers"):
        confusion_matrix([0.0], [0], 2)


def test_multi_label_scores_by_hand_and_scikit_learn():
    predicted = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    expected = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]])
    scores = multi_label_scores(predicted, expected)
    assert scores == pytest.approx((2 / 3, 2 / 3, 2 / 3, 2 / 3))
    assert scores.f1 == pytest.approx(sklearn.metrics.f1_score(expected, predicted, average="micro"))
    assert multi_label_scores(np.ones((2, 3)), expected[:2]) == pytest.approx((2 / 6, 1, 4 / 8, 0))
    assert multi_label_scores(np.zeros((1, 2)), np.zeros((1, 2))) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="rank 2"):
        multi_label_scores([1, 0], [1, 0])


# --- numbers -----------------------------------------------------------------------------------------------------

NUMBERS = st.lists(
    st.tuples(*[st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6, width=32)] * 2), min_size=2, max_size=20
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(NUMBERS)
def test_correlations_are_scipys(pairs):
    x, y = np.array(pairs).T
    constant = len(set(x)) == 1 or len(set(y)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = scipy.stats.spearmanr(x, y).statistic
        linear = scipy.stats.pearsonr(x, y).statistic
    assert spearman(x, y) == pytest.approx(expected, nan_ok=True, abs=1e-9)
    assert np.isnan(pearson(x, y)) == constant
    if not constant and min(np.ptp(x), np.ptp(y)) > 1e-3:  # scipy is not to be trusted below
        assert pearson(x, y) == pytest.approx(linear, abs=1e-6)


def test_correlations_by_hand():
    # Ranks with ties 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman([1, 2, 2, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert pearson([1, 2, 3], [1, 2, 4]) == pytest.approx(3 / (2 * 14 / 3) ** 0.5)
    assert pearson([1, 2, 3], [-3, -6, -9]) == pytest.approx(-1) and spearman([1, 2, 3], [1, 8, 27]) == pytest.approx(1)
    assert pearson([1e300, 2e300, 3e300], [1e-300, 2e-300, 3e-300]) == pytest.approx(1)


@pytest.mark.parametrize("x", [[1, 1, 1], [1, np.nan, 2], [1, np.inf, 2], [0, 0, 0]])
def test_no_correlation_with_what_is_constant_or_not_finite(x):
    y = np.array([1, 2, 3], np.float32)
    for score in (pearson, spearman):
        assert np.isnan(score(x, y)) and np.isnan(score(y, x)) and np.isnan(score([1], [2]))
        with pytest.raises(ValueError, match="same shape"):
            score(x, [1, 2])


# --- tags --------------------------------------------------------------------------------------------------------


def test_tagging_scores_by_hand():
    # seqeval's own example: MISC has the wrong first token, PER is right.
    expected = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    scores = tagging_scores(predicted, expected)
    assert scores[:3] == (0.5, 0.5, 0.5)
    assert scores.types == {"MISC": (0, 0, 0), "PER": (1, 1, 1)}


def test_tagging_predictions_need_not_be_bio():
    # I-LOC begins a span, as in conlleval; of three predicted spans one is right, of two expected ones too.
    scores = tagging_scores([("I-LOC", "I-LOC", "B-PER"), ("I-PER",)], [["B-LOC", "I-LOC", "O"], ["B-LOC"]])
    assert scores[:3] == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert scores.types["LOC"] == pytest.approx((1, 1 / 2, 2 / 3)) and scores.types["PER"] == (0, 0, 0)


def test_no_spans_and_odd_tags_are_no_reason_to_warn():
    assert tagging_scores([["O", "O"]], [["O", "O"]]) == (0, 0, 0, {})
    assert tagging_scores([["O"]], [["B-x"]]) == (0, 0, 0, {"x": (0, 0, 0)})
    assert tagging_scores([["LABEL_0"]], [["B-x"]])[:3] == (0, 0, 0)
    for predicted, expected in (([], []), ([["O"]], []), ([["O"]], [["O", "O"]])):
        with pytest.raises(ValueError, match="same sentences"):
            tagging_scores(predicted, expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.tuples(*[st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"])] * 2), min_size=1), min_size=1))
def test_tagging_scores_are_those_of_spans(sentences):
    def spans(tags):
        found, before = [], "O"
        for index, tag in enumerate(tags):
            if tag != "O" and (tag[0] == "B" or before[1:] != tag[1:]):
                found.append([tag[2:], index, index])
            elif tag != "O":
                found[-1][2] = index
            before = tag
        return set(map(tuple, found))

    predicted, expected = ([[pair[side] for pair in sentence] for sentence in sentences] for side in (0, 1))
    one, two = ([(n, *span) for n, tags in enumerate(side) for span in spans(tags)] for side in (predicted, expected))
    right = len(set(one) & set(two))
    scores = tagging_scores(predicted, expected)
    assert scores.f1 == pytest.approx(2 * right / max(len(one) + len(two), 1))
    assert scores.precision == pytest.approx(right / max(len(one), 1))
    assert scores.recall == pytest.approx(right / max(len(two), 1))


def test_joint_scores():
    tags = [["B-a", "I-a"], ["O"], ["B-b"], ["B-b"]]
    predicted = [["B-a", "I-a"], ["O"], ["B-b"], ["O"]]
    scores = joint_scores(["p", "q", "p", "q"], ["p", "q", "q", "q"], predicted, tags)
    assert scores == pytest.approx((3 / 4, 4 / 5, 2 / 4))
    with pytest.raises(ValueError, match="same shape"):
        joint_scores(["p"], ["p"], predicted, tags)
