"""What a Transformer's translations of held-out pairs are worth."""

import warnings
from collections.abc import Sequence

from train.metrics import bleu_by_kind, corpus_scores
from train.terminal import say
from train.translate_corpus import Corpus
from transformer_jax import Translator

TITLES = {"chrf": "chrF", "chrf++": "chrF++", "ter": "TER"}
SHOWN = 10


def translations_of(translator: Translator, sources: Sequence[str]) -> list[str]:
    """Translations; the table has said that sources are cut to --max-length, so nothing more is said here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return translator(sources)


def bleu_row(translations: Sequence[str], corpus: Corpus) -> dict[str, float]:
    """`eval/bleu` of the first held-out pairs, and `eval/bleu_DIRECTION` where there are several directions."""
    count = len(translations)
    references = [target for _, target in corpus.held_out[:count]]
    found = bleu_by_kind(translations, references, corpus.directions[:count])
    return {f"eval/bleu_{direction}" if direction else "eval/bleu": bleu for direction, bleu in found.items()}


def say_translations(translations: Sequence[str], corpus: Corpus) -> None:
    """Prints ten of them."""
    rows = list(zip(corpus.held_out, translations, strict=True))
    for (source, reference), translation in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]:
        say(f"\n  source:      {source}\n  reference:   {reference}\n  translation: {translation}")


def say_scores(translations: Sequence[str], corpus: Corpus) -> None:
    """Prints all scores with their signatures, and BLEU of each direction where there are several."""
    references = [target for _, target in corpus.held_out]
    scores = corpus_scores(translations, references)
    exact = sum(t == r for t, r in zip(translations, references, strict=True)) / len(references)
    say(f"BLEU {scores['bleu']:.2f} on {len(references)} held-out pairs, {exact:.1%} of them exact")
    for direction, bleu in bleu_by_kind(translations, references, corpus.directions).items():
        if direction:
            say(f"  {direction}: BLEU {bleu:.2f} on {corpus.directions.count(direction)}")
    say(f"  {scores['bleu_signature']}")
    for name, title in TITLES.items():
        if name in scores:
            say(f"{title} {scores[name]:.2f}\n  {scores[f'{name}_signature']}")
        else:
            say(f"{title}: not computed, as it takes hours on texts of such length")
