"""Decoding with a Transformer: `generate` from token ids, `Translator` from sentences."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from transformer_jax.checks import require
from transformer_jax.decoding import SearchOptions, beam_search, gather_rows, greedy_search
from transformer_jax.seq2seq import Transformer


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

    Args:
        input_ids: source tokens [B, S].
        attention_mask: [B, S], 1 or True for tokens; by default everything but the padding token.
        num_beams: W; 1 is greedy search, which takes no account of the penalty.
        length_penalty, early_stopping, preset: see `SearchOptions`, whose score is named by `preset`.
        max_length: start and end token included.

    Raises:
        ValueError: an unknown preset, or fewer than one beam or two tokens.
    """
    require(preset in ("hf", "paper"), f"preset {preset!r}: choose hf or paper")
    stops = (True, False, "never")
    require(early_stopping in stops, f"early_stopping {early_stopping!r}: choose one of {stops}")
    require(num_beams >= 1, f"num_beams must be at least 1, not {num_beams}")
    require(max_length >= 2, f"max_length must be at least 2 (start and end token), not {max_length}")
    c = model.config
    options = SearchOptions(
        max_length, c.decoder_start_id, c.eos_id, c.pad_id, num_beams, length_penalty, early_stopping, preset
    )
    input_ids = jnp.asarray(input_ids)
    attention_mask = input_ids != c.pad_id if attention_mask is None else jnp.asarray(attention_mask)
    return _generate(model, options, params, input_ids, attention_mask)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Transformer, options: SearchOptions, params: dict[str, Any], input_ids: Array, attention_mask: Array
) -> Array:
    def run(method: str, *args: Any, **kwargs: Any) -> Any:
        return model.apply({"params": params}, *args, method=method, **kwargs)

    batch = input_ids.shape[0]
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


class Tokenizer(Protocol):
    """What a Translator needs of a tokenizer; `sentencepiece.SentencePieceProcessor` has it."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Translator:
    """Sentences in, sentences out: tokenised, sorted by length, padded to few shapes, decoded, put back in order.

    Attributes:
        max_length: sources are cut to so many tokens; outputs have at most 50 more than their padded source
            (Vaswani et al. 2017, section 6.1).
        batch_size: sentences decoded together.
        length_penalty, preset: see `generate`.
    """

    model: Transformer
    params: dict[str, Any]
    tokenizer: Tokenizer
    num_beams: int = 4
    length_penalty: float = 0.6
    preset: Literal["hf", "paper"] = "paper"
    max_length: int = 256
    batch_size: int = 64

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: DTypeLike = jnp.float32, **options: Any) -> "Translator":
        """Reads a folder that `Transformer.save_pretrained` wrote, with the vocabulary `spm.model` beside it."""
        import sentencepiece

        model, params = Transformer.from_pretrained(folder, dtype)
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "spm.model"))
        return cls(model, params, tokenizer, **options)

    def __call__(self, sentences: Sequence[str]) -> list[str]:
        """A translation for each sentence."""
        eos = self.model.config.eos_id
        sources = [[*self.tokenizer.encode(text)[: self.max_length - 1], eos] for text in sentences]
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        outputs = [""] * len(sources)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            width = _bucket(len(sources[rows[-1]]))
            ids_BS = np.full((self.batch_size, width), self.model.config.pad_id, np.int32)
            ids_BS[:, 0] = eos  # what fills up the last batch attends to something
            for row, i in enumerate(rows):
                ids_BS[row, : len(sources[i])] = sources[i]
            ids_BT = generate(
                self.model,
                self.params,
                ids_BS,
                num_beams=self.num_beams,
                length_penalty=self.length_penalty,
                max_length=width + 50,
                preset=self.preset,
            )
            for i, ids in zip(rows, np.asarray(ids_BT)[:, 1:].tolist(), strict=False):
                outputs[i] = self.tokenizer.decode(ids[: ids.index(eos)] if eos in ids else ids)
        return outputs


def _bucket(length: int) -> int:
    """The next of 8, 16, 24, 32, 48, 64, 96, 128 ...: few shapes to compile, a third of padding at most."""
    if length <= 24:
        return -(-length // 8) * 8
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if length <= power * 3 // 4 else power
