"""Minimum-Bayes-risk choice: the output that has the most in common with all that the model might have said."""

from collections import Counter
from collections.abc import Sequence

from transformer_jax.translator import Translation


def by_risk(outputs: Sequence[Translation]) -> list[Translation]:
    """Outputs by their expected chrF against the others, the highest first (Eikema and Aziz 2020, section 5.1).

    Each of them stands for what the model might say, as often as it is there: samples, then, and not those of a beam.
    Of equals the first comes first. An output's score stays the model's.
    """
    from sacrebleu.metrics.chrf import CHRF

    chrf, counts = CHRF(), Counter(output.text for output in outputs)

    def risk(text: str) -> float:
        others = ((other, count - (other == text)) for other, count in counts.items())
        return -sum(count * chrf.sentence_score(text, [other]).score for other, count in others if count)

    risks = {text: risk(text) for text in counts}
    return sorted(outputs, key=lambda output: risks[output.text])
