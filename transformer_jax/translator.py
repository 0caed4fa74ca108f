"""Decoding with a Transformer: `generate` from token ids, `Translator` from sentences."""

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from transformer_jax.checks import (
    LARGEST,
    Range,
    as_ids,
    check_fields,
    check_ids,
    check_value,
    concrete,
    listed,
    require,
    shown,
)
from transformer_jax.decoding import (
    BROKEN,
    Beam,
    Length,
    Penalty,
    SearchOptions,
    beam_search,
    gather_rows,
    greedy_search,
)
from transformer_jax.masks import AttentionMask
from transformer_jax.seq2seq import Transformer
from transformer_jax.tokenizer import SENTENCEPIECE, Tokenizer, file_name, load_tokenizer

LONGER = 50  # tokens that an output may have more than its padded source (Vaswani et al. 2017, section 6.1)


def generate(
    model: Transformer,
    params: dict[str, Any],
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    max_length: int = 64,
    preset: Literal["hf", "paper"] = "hf",
) -> Array:
    """The best output for each source: ids [B, max_length] int32, from the start token on, padded behind the end.

    A row without any token that is attended to, or with scores that are NaN or infinite, has no output: see Raises, and
    under `jit`, where values cannot be seen, its ids are -1 behind the start token.

    Args:
        input_ids: source tokens [B, S]; an array, or lists of one length.
        attention_mask: [B, S], 1 or True for tokens; by default everything but the padding token.
        num_beams: W; 1 is greedy search, which takes no account of the penalty.
        length_penalty, early_stopping, preset: see `SearchOptions`, whose score is named by `preset`.
        max_length: start and end token included.

    Raises:
        ValueError: an option is out of range, ids or mask are not what the model reads, or rows have no output. It
            names the option or the rows.
    """
    check_value("preset", preset, Literal["hf", "paper"])
    c = model.config
    options = SearchOptions(
        max_length, c.decoder_start_id, c.eos_id, c.pad_id, num_beams, length_penalty, early_stopping, preset
    )
    check_fields(options)
    input_ids = as_ids("input_ids", input_ids)
    check_ids("input_ids", input_ids, c.vocab_size, f"the model's vocabulary of {c.vocab_size}")
    input_ids = jnp.asarray(input_ids)
    tokens = input_ids != c.pad_id if attention_mask is None else attention_mask
    mask_BS = cast(Array, AttentionMask.padding(tokens, input_ids.shape).key_mask_BS)
    _refuse_rows(~mask_BS.any(axis=1), "hold no token that is attended to")
    ids_BT = _generate(model, options, params, input_ids, mask_BS)
    _refuse_rows(ids_BT[:, 1] == BROKEN, "have scores that are not finite: look for nan or infinity in the parameters")
    return ids_BT


def _refuse_rows(wrong_B: Array, reason: str) -> None:
    wrong = concrete(wrong_B)
    rows = [] if wrong is None else [str(row) for row in np.flatnonzero(wrong)]
    require(not rows, f"rows {listed(rows)} of input_ids {reason}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Transformer, options: SearchOptions, params: dict[str, Any], input_ids: Array, attention_mask: Array
) -> Array:
    def run(method: str, *args: Any, **kwargs: Any) -> Any:
        return model.apply({"params": params}, *args, method=method, **kwargs)

    batch = input_ids.shape[0]
    input_ids = jnp.where(jnp.any(attention_mask, axis=1, keepdims=True), input_ids, BROKEN)
    # Keys and values of the source are shared by the beams of a sentence: no beam axis, and nothing to reorder.
    memory = run("project_memory", run("encode", input_ids, attention_mask))
    cache = run("empty_cache", batch * options.num_beams, options.max_length)

    def step(ids_R: Array, cache: Any) -> tuple[Array, Any]:
        logits_R1V, cache = run("decode", ids_R[:, None], memory, attention_mask, cache=cache)
        return logits_R1V[:, 0], cache

    if options.num_beams == 1:
        return greedy_search(step, cache, batch, options)
    gather = jax.vmap(gather_rows, in_axes=(0, None)) if model.config.scan_layers else gather_rows
    return beam_search(step, cache, batch, options, gather)[0][:, 0]


@dataclasses.dataclass(frozen=True)
class Translator:
    """Sentences in, sentences out: tokenised, sorted by length, padded to few shapes, decoded, put back in order.

    Attributes:
        max_length: tokens of a source, its end included; what is longer is cut, with a warning. Outputs have at most 50
            more than their padded source (Vaswani et al. 2017, section 6.1). Neither has more than a learned table of
            positions has rows.
        batch_size: sentences decoded together.
        length_penalty, preset: see `generate`.

    Raises:
        ValueError: an option is out of range, or the tokenizer is not that of the model.
    """

    model: Transformer
    params: dict[str, Any]
    tokenizer: Tokenizer
    num_beams: Beam = 4
    length_penalty: Penalty = 0.6
    preset: Literal["hf", "paper"] = "paper"
    max_length: Length = 256
    batch_size: Annotated[int, Range(1, 2**16)] = 64

    def __post_init__(self) -> None:
        check_fields(self)
        c, told = self.model.config, {}
        for name in ("vocab_size", "eos_id", "pad_id"):  # SentencePiece says them, with -1 for tokens that it lacks
            if callable(method := getattr(self.tokenizer, name, None)):
                told[name] = method()
        words = told.pop("vocab_size", 0)
        require(words <= c.vocab_size, f"the tokenizer has {words} words, but the model's vocab_size is {c.vocab_size}")
        for name, id_ in told.items():
            right = getattr(c, name)
            require(id_ in (-1, right), f"{name} of the tokenizer is {id_}, but that of the model {right}")

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: DTypeLike = jnp.float32, **options: Any) -> "Translator":
        """Reads a folder that `Transformer.save_pretrained` wrote, with `spm.model` or `tokenizer.json` beside it.

        Raises:
            ValueError: as `Transformer.from_pretrained`, `load_tokenizer` and the class; it names the folder.
        """
        tokenizer = load_tokenizer(folder)
        model, params = Transformer.from_pretrained(folder, dtype)
        name, words, wanted = file_name(tokenizer), tokenizer.vocab_size(), model.config.vocab_size
        # An spm.model that is cut off can be a smaller vocabulary; tables longer than a tokenizer.json are common.
        fits = words == wanted if name == SENTENCEPIECE else words <= wanted
        require(fits, f"{folder}/{name} has {words} words, but vocab_size in config.json is {wanted}")
        try:
            return cls(model, params, tokenizer, **options)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def __call__(self, sentences: Sequence[str]) -> list[str]:
        """A translation for each sentence; "" for one without any token, such as "" and " ".

        Sentences that are longer than `max_length` are cut, and named in a warning with their length.

        Raises:
            ValueError: one string instead of several, something that is no string, or text that is not Unicode (a
                lone surrogate); or the model's scores are not finite.
        """
        c = self.model.config
        eos, begin = c.eos_id, [] if c.encoder_start_id is None else [c.encoder_start_id]
        sources = [[*begin, *tokens, eos] if tokens else [] for tokens in self._encode(sentences)]
        reach = c.max_length if c.positions == "learned" else LARGEST
        longest = min(self.max_length, reach)
        long = {i: len(source) for i, source in enumerate(sources) if len(source) > longest}
        if long:
            lengths = listed([f"sentence {i} has {length}" for i, length in long.items()])
            warnings.warn(
                f"{len(long)} of {len(sources)} sentences were cut to max_length {longest} tokens, "
                f"end included: {lengths}; split them{'' if longest == reach else ', or give a larger max_length'}",
                stacklevel=2,
            )
        sources = [[*source[: longest - 1], eos] if i in long else source for i, source in enumerate(sources)]
        order = sorted((i for i, source in enumerate(sources) if source), key=lambda i: len(sources[i]))
        outputs = [""] * len(sources)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            width = min(_bucket(len(sources[rows[-1]])), reach)
            ids_BS = np.full((self.batch_size, width), c.pad_id, np.int32)
            ids_BS[:, 0] = eos  # what fills up the last batch attends to something
            for row, i in enumerate(rows):
                ids_BS[row, : len(sources[i])] = sources[i]
            ids_BT = generate(
                self.model,
                self.params,
                ids_BS,
                num_beams=self.num_beams,
                length_penalty=self.length_penalty,
                max_length=min(width + LONGER, reach),
                preset=self.preset,
            )
            for i, ids in zip(rows, np.asarray(ids_BT)[:, 1:].tolist(), strict=False):
                outputs[i] = self._decode(ids[: ids.index(eos)] if eos in ids else ids)
        return outputs

    def _encode(self, sentences: Sequence[str]) -> list[list[int]]:
        several = isinstance(sentences, Iterable) and not isinstance(sentences, str | bytes | Mapping)
        require(several, f"give a list of sentences, not {shown(sentences)}")
        encoded: list[list[int]] = []
        for i, text in enumerate(sentences):
            require(isinstance(text, str), f"sentence {i} must be a string, not {shown(text)}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"sentence {i} is not Unicode: {error}") from error
            encoded.append(self.tokenizer.encode(text) if text.strip() else [])
        return encoded

    def _decode(self, ids: list[int]) -> str:
        try:
            return self.tokenizer.decode(ids)
        except IndexError as error:
            raise ValueError(f"the model gave ids that the tokenizer does not have, up to {max(ids)}") from error


def _bucket(length: int) -> int:
    """The next of 8, 16, 24, 32, 48, 64, 96, 128 ...: few shapes to compile, a third of padding at most."""
    if length <= 24:
        return -(-length // 8) * 8
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 else power
