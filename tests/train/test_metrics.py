import pytest

from train.metrics import corpus_scores


def test_perfect_translations_score_100_and_signatures_say_how():
    sentences = ["Das Treffen beginnt am 3. März 2024.", "Es ist jetzt 14:05 Uhr."]
    scores = corpus_scores(sentences, sentences)
    assert set(scores) == {"bleu", "bleu_signature", "chrf", "chrf_signature"}
    assert scores["bleu"] == pytest.approx(100) and scores["chrf"] == pytest.approx(100)
    assert "tok:13a" in scores["bleu_signature"] and "smooth:exp" in scores["bleu_signature"]
    assert "nc:6" in scores["chrf_signature"] and "nrefs:1" in scores["chrf_signature"]


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
