"""What stands in front of a source as one token: the language that it goes into, and that it was translated back."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformer_jax.checks import require

# In front of a source that a model wrote, of a target that people wrote (Caswell et al. 2019).
BACK_TRANSLATED = "<BT>"
UNKNOWN = ">>\ue000<<"  # the tag of no language
_TAG = rf"(?:>>[\w-]+<<|{BACK_TRANSLATED})"
_IN_FRONT = re.compile(rf"(?:{_TAG}(?:\s+|$))*")


def language_tag(language: str) -> str:
    """What a source begins with whose target is of that language (Johnson et al. 2017), written as OPUS-MT does."""
    return f">>{language}<<"


def split_tags(text: str) -> tuple[list[str], str]:
    """The tags that a text begins with, and the text behind them."""
    tags = _IN_FRONT.match(text)
    end = tags.end() if tags else 0
    return text[:end].split(), text[end:]


def check_tags(tokenizer: Any, tags: Iterable[str]) -> None:
    """Raises ValueError where a tag is not a token of the vocabulary."""
    for tag in tags:
        ids = tokenizer.encode(tag)
        known = len(ids) == 1 and ids != tokenizer.encode(UNKNOWN)
        require(known, f"the vocabulary has no token {tag}, which sources begin with")


# SentencePiece puts a space in front of each text. So that a tag is one token there, the space is part of its piece.


def piece_of_tag(tag: str) -> str:
    return f"▁{tag}"


def tag_ids(pieces: Mapping[str, int]) -> list[int]:
    """The ids of a vocabulary's tags."""
    return [id_ for piece, id_ in pieces.items() if re.fullmatch(f"▁?{_TAG}", piece)]


def marian_names(pieces: Mapping[str, int]) -> dict[str, int]:
    """Pieces of SentencePiece as a Marian's vocabulary has them: it looks a language's tag up as it is written."""
    names = {piece: re.sub(r"^▁(>>[\w-]+<<)$", r"\1", piece) for piece in pieces}
    return {piece if names[piece] in pieces else names[piece]: id_ for piece, id_ in pieces.items()}
