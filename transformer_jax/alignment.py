"""Which word of a sentence each word of its translation came from, by the decoder's attention."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from transformer_jax.batches import bucket, by_length, padded, row_count, shifted
from transformer_jax.checks import require, shown
from transformer_jax.devices import Devices
from transformer_jax.seq2seq import Transformer
from transformer_jax.spans import Span, token_spans
from transformer_jax.texts import TextError, progress
from transformer_jax.tokenizer import Tokenizer

Splitter = Callable[[str], Sequence[str]]


class Alignment(NamedTuple):
    """What the words of a translation attended to.

    Attributes:
        links: (word of the sentence, word of the translation), both from 0: for each word of the translation the one
            that it attended to the most, if it attended to any.
        weights: float32 [words of the translation, words of the sentence]. Rows sum to at most 1: the rest is attention
            to the sentence's start and end.
    """

    links: tuple[tuple[int, int], ...]
    weights: np.ndarray

    def pharaoh(self) -> str:
        """The links as fast_align and Marian write them, such as `0-0 1-2`."""
        return " ".join(f"{source}-{target}" for source, target in self.links)


def decoder_layer(layer: int | None, layers: int) -> int:
    """The number of a decoder layer, which may count from the end; by default the last but one, or the only one.

    Raises:
        ValueError: there is none of that number.
    """
    if layer is None:
        return max(0, layers - 2)
    known = isinstance(layer, int) and not isinstance(layer, bool) and -layers <= layer < layers
    require(known, f"layer must be an integer from {-layers} to {layers - 1}, not {shown(layer)}")
    return layer % layers


def token_attention(
    model: Transformer,
    layer: int,
    params: dict[str, Any],
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    batch_size: int,
    reach: int,
    devices: Devices,
) -> list[np.ndarray]:
    """The weights by which the tokens of each target attend to those of its source but start and end: float32 [T, S].

    [0, 0] where either has no token.

    Args:
        sources, targets: ids as `transformer_jax.batches` makes them.
        reach: the tokens that either may have.

    Raises:
        ValueError: weights are not finite.
    """
    c, begin = model.config, 0 if model.config.encoder_start_id is None else 1
    found = [np.zeros((0, 0), np.float32) for _ in sources]
    both = [source if target else [] for source, target in zip(sources, targets, strict=True)]
    batches = by_length(both, batch_size)
    with progress(sum(map(len, batches)), len(batches)) as advance:
        for members in batches:
            rows = row_count(len(members), batch_size, devices.parts)
            width, length = (min(bucket(max(len(ids[i]) for i in members)), reach) for ids in (sources, targets))
            read = padded([sources[i] for i in members], [], rows, width, c)
            given = devices.split((read.ids_BS, shifted([targets[i] for i in members], rows, length, c), read.mask_BS))
            with devices.in_use():
                weights_BLS = np.asarray(_cross_attention(model, layer, params, *given))
            for i, weights_LS in zip(members, weights_BLS, strict=False):
                found[i] = weights_LS[: len(targets[i]), begin : len(sources[i]) - 1]
                wrong = "attention is not finite: look for nan or infinity in the parameters"
                require(bool(np.isfinite(found[i]).all()), wrong)
            advance(len(members))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cross_attention(model: Transformer, layer: int, params: dict[str, Any], *given: Array) -> Array:
    """The weights of one decoder layer, the mean of its heads: float32 [B, L, S]."""
    weights: Any = model.apply({"params": params}, *given, method="cross_attentions")
    return weights[layer].mean(axis=1)


def align_words(weights_TS: np.ndarray, source_SW: np.ndarray, target_TW: np.ndarray) -> Alignment:
    """The attention of words: that of their tokens on average, and to all tokens of a word together.

    Args:
        weights_TS: by which tokens attend to tokens.
        source_SW, target_TW: how much of each token belongs to each word, see `words_of_tokens`; tokens without
            weights stand at the end.
    """
    T, S = weights_TS.shape
    counts_1W = target_TW[:T].sum(axis=0, keepdims=True)
    weights = (target_TW[:T] / np.maximum(counts_1W, np.finfo(np.float32).tiny)).T @ weights_TS @ source_SW[:S]
    strongest = enumerate(weights.argmax(axis=1).tolist() if weights.size else [])
    return Alignment(tuple((source, target) for target, source in strongest if weights[target, source] > 0), weights)


def words_of_tokens(
    tokenizer: Tokenizer, name: str, texts: Sequence[str], words: Splitter, longest: int
) -> list[np.ndarray]:
    """How much of each token of a text belongs to each of its words: float32 [tokens, words], of the first `longest`.

    A token belongs in equal parts to all words that it has characters of. One without any, such as SentencePiece's mark
    in front of a word, belongs to the word behind it.

    Args:
        name: `sentences`, or `translations`, which are in the target's language.

    Raises:
        ValueError: what `words` makes of a text does not stand in it, one word behind the other.
    """
    target = name == "translations"
    spans = (token_spans(tokenizer, text, target=target)[:longest] for text in texts)
    return [
        _shares(_places(name, i, text, words(text)), own)
        for i, (text, own) in enumerate(zip(texts, spans, strict=True))
    ]


def _places(name: str, index: int, text: str, words: Sequence[str]) -> list[Span]:
    """Where words stand in a text."""
    places, at = [], 0
    for word in words:
        begin = text.find(word, at) if word else -1
        if begin < 0:
            raise TextError(name, index, f"has no word {shown(word)} from its character {at} on, though words gives it")
        at = begin + len(word)
        places.append((begin, at))
    return places


def _shares(words: Sequence[Span], tokens: Sequence[Span]) -> np.ndarray:
    if not words or not tokens:
        return np.zeros((len(tokens), len(words)), np.float32)
    first_1W, last_1W = np.array(words).T[:, None, :]
    begin_T1, end_T1 = np.array(tokens).T[:, :, None]
    is_of_TW = (first_1W < end_T1) & (last_1W > begin_T1)
    is_behind_TW = last_1W > begin_T1
    is_next_TW = is_behind_TW & (is_behind_TW.cumsum(axis=1) == 1)
    is_of_TW |= is_next_TW & ~is_of_TW.any(axis=1, keepdims=True)
    return (is_of_TW / np.maximum(1, is_of_TW.sum(axis=1, keepdims=True))).astype(np.float32)
