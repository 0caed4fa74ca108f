"""Scores of generated text."""

from collections.abc import Sequence

from sacrebleu.metrics import BLEU, CHRF


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """sacreBLEU (Post 2018) and chrF (Popović 2015) of translations against one reference each.

    Returns:
        `bleu` and `chrf` from 0 to 100, and `bleu_signature` and `chrf_signature`, which say how they were
        computed and belong beside every published score.

    Raises:
        ValueError: there are no translations, or not as many as references.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} translations for {len(references)} references; both must be equally many")
    scores: dict[str, float | str] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        scores[name] = float(metric.corpus_score(list(hypotheses), [list(references)]).score)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores
