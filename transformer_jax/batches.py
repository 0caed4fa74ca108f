"""Sentences into batches of ids, and ids back into text: what a `Translator` does around its search.

A list of ids is one sentence's, with what begins and ends it. Batches have few shapes, each of which is a program of
its own, to be compiled; nothing that comes of a sentence depends on the others of its batch.
"""

import itertools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.checks import require, shown
from transformer_jax.config import TransformerConfig
from transformer_jax.decoding import Phrases, Prefix, check_phrases
from transformer_jax.texts import TextError, TextsCut, checked_texts
from transformer_jax.tokenizer import Tokenizer, target_encoder

# --- text into ids -----------------------------------------------------------------------------------------------


def encode_sources(
    tokenizer: Tokenizer, config: TransformerConfig, sentences: Sequence[str], longest: int
) -> list[list[int]]:
    """The ids of sentences; [] for one without a token.

    What has more than `longest` of them is cut in front of its end. A warning says which do, in the name of whoever
    calls the caller's caller.
    """
    begin = [] if config.encoder_start_id is None else [config.encoder_start_id]
    texts = checked_texts("sentences", sentences)
    encoded = (tokenizer.encode(text) if text.strip() else [] for text in texts)
    sources = [[*begin, *tokens, config.eos_id] if tokens else [] for tokens in encoded]
    cut = [i for i, source in enumerate(sources) if len(source) > longest]
    if cut:
        warnings.warn(TextsCut(longest, cut), stacklevel=4)
    return [source if len(source) <= longest else [*source[: longest - 1], config.eos_id] for source in sources]


def encode_targets(tokenizer: Tokenizer, name: str, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts in the target's language; `name` is what the list is called."""
    encode = target_encoder(tokenizer)
    return [encode(text) for text in checked_texts(name, texts)]


def encode_translations(tokenizer: Tokenizer, translations: Sequence[str], longest: int) -> list[list[int]]:
    """The ids of translations, without start and end. What has more than `longest` is cut, as `encode_sources` does."""
    targets = encode_targets(tokenizer, "translations", translations)
    cut = [i for i, target in enumerate(targets) if len(target) > longest]
    if cut:
        warnings.warn(TextsCut(longest, cut, "translations"), stacklevel=4)
    return [target[:longest] for target in targets]


def encode_prefixes(tokenizer: Tokenizer, prefixes: Sequence[str], rooms: Sequence[int]) -> list[list[int]]:
    """The ids that outputs begin with, behind their start.

    Raises:
        ValueError: there is not one for each room, or one has more tokens than its room.
    """
    starts = encode_targets(tokenizer, "prefixes", prefixes)
    require(len(starts) == len(rooms), f"{len(starts)} prefixes for {len(rooms)} sentences: give one for each")
    for i, (start, room) in enumerate(zip(starts, rooms, strict=True)):
        if len(start) > room:
            raise TextError("prefixes", i, f"has {len(start)} tokens, but there is room for {room}")
    return starts


def encode_phrases(
    tokenizer: Tokenizer, config: TransformerConfig, phrases: Sequence[Sequence[str]], rooms: Sequence[int]
) -> list[list[list[int]]]:
    """The ids of what outputs contain: each phrase is encoded for itself, as words are that follow a space.

    Raises:
        ValueError: there is not a list for each room; a `TextError` for a phrase that is no text or cannot be in an
            output, such as one that the tokenizer has no word for, or for more tokens than there is room for.
    """
    several = isinstance(phrases, Sequence) and not isinstance(phrases, str | bytes)
    require(several, f"give a list of phrases for each sentence, not {shown(phrases)}")
    told = f"{len(phrases)} lists of phrases for {len(rooms)} sentences: give one for each"
    require(len(phrases) == len(rooms), told)
    unknown = unk_id() if callable(unk_id := getattr(tokenizer, "unk_id", None)) else -1
    found = []
    for i, (own, room) in enumerate(zip(phrases, rooms, strict=True)):
        try:
            found.append(encode_targets(tokenizer, "phrases", own))
            for text, ids in zip(own, found[-1], strict=True):
                require(unknown not in ids, f"the tokenizer does not know all of {shown(text)}")
            check_phrases(found[-1], config.target_vocab_size, (config.eos_id, config.pad_id), room)
        except ValueError as error:
            raise TextError("phrases", i, f"has a phrase that cannot be in an output: {error}") from error
    return found


# --- ids into batches --------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What is asked of one sentence.

    Attributes:
        source: its ids; none of a sentence without a token.
        limit: the most tokens of an output, its start and end among them.
        start: what an output begins with behind its start token; None where that is said of no sentence.
        phrases: what it contains; likewise.
    """

    source: list[int]
    limit: int
    start: list[int] | None
    phrases: list[list[int]] | None

    @property
    def demanded(self) -> list[int]:
        """The ids of both."""
        return [*(self.start or ()), *(id_ for ids in self.phrases or () for id_ in ids)]


def ask(
    tokenizer: Tokenizer,
    config: TransformerConfig,
    sources: Sequence[list[int]],
    limits: Sequence[int],
    prefixes: Sequence[str] | None,
    phrases: Sequence[Sequence[str]] | None,
) -> list[Asked]:
    """Sources with what their outputs begin with and contain, where anything is said of that."""
    rooms = [limit - 2 for limit in limits]
    starts: Sequence[list[int] | None] = [None] * len(sources)
    wanted: Sequence[list[list[int]] | None] = [None] * len(sources)
    if prefixes is not None:
        starts = encode_prefixes(tokenizer, prefixes, rooms)
    if phrases is not None:
        # A sentence without a token has an empty output.
        both = zip(sources, rooms, starts, strict=True)
        rooms = [room - len(start or ()) if source else 0 for source, room, start in both]
        wanted = encode_phrases(tokenizer, config, phrases, rooms)
    return [*map(Asked, sources, limits, starts, wanted)]


class Batch(NamedTuple):
    """Sources of several sentences.

    Attributes:
        ids_BS: int32, padded.
        mask_BS: which of them are tokens.
        limit_B: the most tokens of each output, its start and end among them.
    """

    ids_BS: Array
    mask_BS: Array
    limit_B: Array


def by_length(sources: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """The places of the sources in batches, the shortest first; those without a token are in none."""
    order = sorted((i for i, source in enumerate(sources) if source), key=lambda i: len(sources[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def row_count(count: int, size: int, parts: int = 1) -> int:
    """The rows of a batch with so many sentences, which are split into so many parts of one size."""
    return parts * min(-(-size // parts), 1 << (-(-count // parts) - 1).bit_length())


def bucket(length: int) -> int:
    """The width of what has so many tokens: the next of 16, 32, 64, 128 ..."""
    return max(16, 1 << (length - 1).bit_length())


def padded(
    sources: Sequence[Sequence[int]], limits: Sequence[int], rows: int, width: int, config: TransformerConfig
) -> Batch:
    """Sources in so many rows. Those that none fills have an end to attend to, and are done before they begin."""
    ids_BS = np.full((rows, width), config.pad_id, np.int32)
    ids_BS[:, 0] = config.eos_id
    lengths_B, limit_B = np.ones(rows, np.int32), np.ones(rows, np.int32)
    limit_B[: len(limits)] = limits
    for row, source in enumerate(sources):
        ids_BS[row, : len(source)] = source
        lengths_B[row] = len(source)
    mask_BS = np.arange(width)[None, :] < lengths_B[:, None]
    return Batch(jnp.asarray(ids_BS), jnp.asarray(mask_BS), jnp.asarray(limit_B))


def shifted(targets: Sequence[Sequence[int]], rows: int, width: int, config: TransformerConfig) -> Array:
    """What a decoder reads to give these tokens, int32 [rows, width]: the start token, and all of them but the last."""
    ids_BL = np.full((rows, width), config.pad_id, np.int32)
    ids_BL[:, 0] = config.decoder_start_id
    for row, target in enumerate(targets):
        ids_BL[row, 1 : len(target)] = target[:-1]
    return jnp.asarray(ids_BL)


def demands(asked: Sequence[Asked], rows: int) -> tuple[tuple[Prefix, ...], Phrases | None]:
    """What the outputs of so many rows must begin with and contain, where anything is said of that."""
    prefixes: tuple[Prefix, ...] = ()
    phrases = None
    if asked[0].start is not None:
        starts = [each.start or [] for each in asked]
        ids_BP = np.zeros((rows, bucket(max(map(len, starts)))), np.int32)
        lengths_B = np.zeros(rows, np.int32)
        for row, start in enumerate(starts):
            ids_BP[row, : len(start)], lengths_B[row] = start, len(start)
        prefixes = (Prefix(jnp.asarray(ids_BP), jnp.asarray(lengths_B)),)
    if asked[0].phrases is not None:
        phrases = Phrases.of([*(each.phrases or [] for each in asked), *[[]] * (rows - len(asked))])
    return prefixes, phrases


def row_keys(key: Array, places: Sequence[int], rows: int) -> Array:
    """A key for each row, which follows from its sentence's place among all."""
    places_B = np.zeros(rows, np.uint32)
    places_B[: len(places)] = places
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(places_B))


# --- ids into text -----------------------------------------------------------------------------------------------


def tokens_of(ids_T: np.ndarray, eos_id: int) -> list[int]:
    """An output without its start, its end, and what stands behind that."""
    return list(itertools.takewhile(lambda id_: id_ != eos_id, ids_T[1:].tolist()))


def decode_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of an output's tokens. Raises ValueError for ids that the tokenizer does not have."""
    try:
        return tokenizer.decode(ids)
    except IndexError as error:
        raise ValueError(f"the model gave ids that the tokenizer does not have, up to {max(ids)}") from error
