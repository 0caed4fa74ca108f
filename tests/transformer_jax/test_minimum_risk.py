"""The choice among samples, against the definition written down with sacrebleu."""

import numpy as np
from sacrebleu.metrics.chrf import CHRF

from transformer_jax.minimum_risk import by_risk
from transformer_jax.translator import Translation

TEXTS = ["the cat sat", "the cat sits", "a dog ran", "the cat sat", "", "the cat sat down", "a dog ran", "", ""]


def test_outputs_are_ordered_by_their_mean_score_against_the_others():
    samples = [Translation(text, -float(i), (i,)) for i, text in enumerate(TEXTS)]
    chrf = CHRF()
    gains = [
        np.mean([chrf.sentence_score(text, [other]).score for j, other in enumerate(TEXTS) if j != i])
        for i, text in enumerate(TEXTS)
    ]
    expected = sorted(range(len(TEXTS)), key=lambda i: (-round(gains[i], 6), i))
    ordered = by_risk(samples)
    assert [output.ids[0] for output in ordered] == expected
    assert {*ordered} == {*samples}


def test_one_sample_or_none_is_its_own_choice():
    assert by_risk([]) == [] and by_risk([Translation("a", 0.0, ())]) == [Translation("a", 0.0, ())]
