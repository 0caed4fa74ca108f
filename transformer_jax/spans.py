"""Where tokens stand in the text that they were made of."""

from typing import Any

from transformer_jax.checks import require

Span = tuple[int, int]  # of characters: the first, and the one behind the last


def token_spans(tokenizer: Any, text: str, *, target: bool = False) -> list[Span]:
    """Where each token that `encode` gives of a text stands in it; with `target` of one in the target's language.

    A token that stands for no character, or for a part of one, may be empty.

    Raises:
        ValueError: a tokenizer does not say it: it neither has a method `spans`, nor is SentencePiece's.
    """
    if callable(method := getattr(tokenizer, "spans", None)):
        return getattr(tokenizer, "target_spans", method)(text) if target else method(text)
    known = callable(getattr(tokenizer, "normalize", None))
    require(known, f"a {type(tokenizer).__name__} does not say where its tokens stand: it has no method spans")
    return sentencepiece_spans(tokenizer, text)


def sentencepiece_spans(processor: Any, text: str) -> list[Span]:
    """Where the pieces of a text stand in it, by what SentencePiece makes of each of its characters."""
    # Also the only way of asking that the versions 0.2.1 and 0.2.3 have in common.
    normalized, origins = processor.normalize(text, with_offsets=True)
    spans, at = [], 0
    for piece in processor.encode(text, out_type=str):
        begin = at
        if normalized.startswith(piece, at):
            at += len(piece)
        elif int(piece[3:5], 16) & 0xC0 == 0x80:  # a byte such as <0x9C>, by which a character goes on
            begin -= 1
        else:
            at += 1
        spans.append((origins[begin], origins[at]))
    return spans
