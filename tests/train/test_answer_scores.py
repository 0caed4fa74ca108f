"""Exact match, F1 and the best threshold, as SQuAD's official scripts have them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.answer_scores import answer_scores, best_threshold, exact_match, normalized_answer, token_f1
from train.data.squad import Answer, Question


def question(identity, *answers):
    return Question("--data: a.json", identity, "?", "...", [Answer(text, 0) for text in answers], not answers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a.b", "ab"),  # punctuation goes before articles: "a" is no word here
        ("An apple, a pear\tand the\nfig", "apple pear and fig"),
        ("Theatre", "theatre"),
        ("$1,200.50", "120050"),
        ("“quoted”", "“quoted”"),  # only ASCII
        ("the", ""),
        ("A-ha", "aha"),
        ("", ""),
    ],
)
def test_normalization(text, expected):
    assert normalized_answer(text) == expected


@pytest.mark.parametrize(
    ("predicted", "expected", "exact", "f1"),
    [
        ("the Denver Broncos", "Denver Broncos.", 1, 1),
        ("Denver", "Denver Broncos", 0, 2 / 3),
        ("Broncos of Denver", "Denver Broncos", 0, 4 / 5),
        ("to to be", "to be to be", 0, 2 * 3 / 7),  # words count as often as both have them
        ("Carolina", "Denver", 0, 0),
        ("", "Denver", 0, 0),
        ("Denver", "", 0, 0),
        ("", "", 1, 1),
        ("the", "a", 1, 1),  # both are nothing once they are normalized
    ],
)
def test_of_one_answer(predicted, expected, exact, f1):
    assert exact_match(predicted, expected) == exact
    assert token_f1(predicted, expected) == pytest.approx(f1)


def test_the_best_of_several_answers_counts_and_nothing_is_right_where_there_is_none():
    questions = [question("1", "Denver", "Denver Broncos"), question("2"), question("3"), question("4", "a", "one")]
    scores = answer_scores({"1": "the Denver Broncos team", "2": "", "3": "x", "4": "1"}, questions)
    assert scores == pytest.approx((1 / 4, (4 / 5 + 1) / 4, 0, 2 / 5, 1 / 2))
    # An answer that is an article only is no answer: what remains is "one".
    assert answer_scores({"4": ""}, questions[3:]).exact_match == 0
    assert answer_scores({"5": ""}, [question("5", "the")]).f1 == 1
    assert math.isnan(answer_scores({"1": "x"}, questions[:1]).unanswerable)
    for predicted, asked in (({}, questions), ({"1": "x"}, [])):
        with pytest.raises(ValueError, match="questions"):
            answer_scores(predicted, asked)


def test_best_threshold_by_hand():
    questions = [question("1", "one two"), question("2"), question("3", "three"), question("4")]
    predicted = {"1": "one", "2": "x", "3": "three", "4": "y"}
    no_answer = {"1": -2.0, "2": 1.0, "3": 0.0, "4": -1.0}
    # In the order 1, 4, 3, 2: exact 2, 2, 1, 2, 1 are right; F1 2, 2 2/3, 1 2/3, 2 2/3, 1 2/3.
    best = best_threshold(predicted, no_answer, questions)
    assert best == pytest.approx((2 / 4, math.nextafter(-2.0, -math.inf), (2 + 2 / 3) / 4, -2.0))
    assert best.best_exact_threshold < -2.0
    with pytest.raises(ValueError, match="no score"):
        best_threshold(predicted, {}, questions)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from([(), ("a b",)]), st.sampled_from(["a b", "b", "c"]), st.integers(-2, 2)), min_size=1
    )
)
def test_best_threshold_is_the_best_of_all(made):
    questions = [question(str(n), *answers) for n, (answers, _, _) in enumerate(made)]
    predicted = {str(n): text for n, (_, text, _) in enumerate(made)}
    no_answer = {str(n): float(score) for n, (_, _, score) in enumerate(made)}

    def at(threshold):
        return answer_scores({k: text if no_answer[k] <= threshold else "" for k, text in predicted.items()}, questions)

    best = best_threshold(predicted, no_answer, questions)
    every = [at(threshold) for threshold in (-3.0, *no_answer.values())]
    assert best.best_exact == pytest.approx(max(scores.exact_match for scores in every))
    assert best.best_f1 == pytest.approx(max(scores.f1 for scores in every))
    assert at(best.best_exact_threshold).exact_match == pytest.approx(best.best_exact)
    assert at(best.best_f1_threshold).f1 == pytest.approx(best.best_f1)
