"""The encoder-decoder Transformer (Vaswani et al. 2017)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from transformer_jax.attention import check_room
from transformer_jax.checkpoints import read_config, read_params, save_folder
from transformer_jax.checks import (
    Id,
    Layers,
    NotNegative,
    Positions,
    Share,
    Size,
    Width,
    as_ids,
    check_fields,
    check_ids,
    listed,
    require,
    shown,
)
from transformer_jax.layers import Activation, Embed, LayerNorm, dropout, dropout_seed, take_rows
from transformer_jax.masks import AttentionMask
from transformer_jax.positions import LearnedPositions, sinusoidal_positions
from transformer_jax.stack import Decoder, Encoder, Remat, StackConfig, stack_layers, unstack_layers

MODEL_TYPE = "transformer_jax"


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The model's make-up; `tiny`, `base` and `big` are presets.

    Attributes:
        vocab_size: V, shared by source, target and softmax, whose tables are one.
        embeddings: "scaled" multiplies them by sqrt(D) in front of the positions (section 3.4), "normalised" has a
            layer normalisation behind the positions instead, as BERT has it.
        positions: sinusoids in the paper's layout (interleaved) or in Marian's (halves), or a learned table.
        max_length: rows of a learned table, and of the sinusoids that `position_ids` may ask for.
        encoder_start_id: what each source begins with; None for nothing. Like the end, it is among the `input_ids`.
        decoder_start_id: what the decoder reads first; the padding token, as in Marian.
    The other fields are those of `StackConfig`.
    """

    vocab_size: Size
    features: Width = 512
    num_heads: Width = 8
    head_dim: Width | None = None
    mlp_dim: Width = 2048
    encoder_layers: Layers = 6
    decoder_layers: Layers = 6
    activation: Activation = "relu"
    norm: Literal["pre", "post"] = "post"
    norm_epsilon: NotNegative = 1e-6
    embeddings: Literal["scaled", "normalised"] = "scaled"
    positions: Literal["interleaved", "halves", "learned"] = "interleaved"
    max_length: Positions = 512
    dropout_rate: Share = 0.1
    attention_dropout_rate: Share = 0.0
    activation_dropout_rate: Share = 0.0
    attention_bias: bool = True
    scan_layers: bool = False
    remat: Remat = "none"
    pad_id: Id = 0
    eos_id: Id = 1
    encoder_start_id: Id | None = None
    decoder_start_id: Id = 0

    def __post_init__(self) -> None:
        check_fields(self)
        self.stack(self.encoder_layers)  # it checks its heads
        for name in ("pad_id", "eos_id", "encoder_start_id", "decoder_start_id"):
            if (id_ := getattr(self, name)) is not None:
                check_ids(name, id_, self.vocab_size, f"vocab_size is {self.vocab_size}")
        require(self.pad_id != self.eos_id, f"pad_id and eos_id must differ, but both are {self.pad_id}")
        even = self.positions == "learned" or self.features % 2 == 0
        require(even, f"sinusoidal positions need an even width, not features {self.features}")

    @classmethod
    def tiny(cls, vocab_size: int, **overrides: Any) -> "TransformerConfig":
        """2 + 2 pre-norm layers of width 128: minutes on a CPU."""
        sizes = {"features": 128, "num_heads": 4, "mlp_dim": 512, "encoder_layers": 2, "decoder_layers": 2}
        return cls(vocab_size, **{**sizes, "norm": "pre", **overrides})

    @classmethod
    def base(cls, vocab_size: int, **overrides: Any) -> "TransformerConfig":
        """The paper's base model (table 3)."""
        return cls(vocab_size, **overrides)

    @classmethod
    def big(cls, vocab_size: int, **overrides: Any) -> "TransformerConfig":
        """The paper's big model (table 3)."""
        sizes = {"features": 1024, "num_heads": 16, "mlp_dim": 4096, "dropout_rate": 0.3}
        return cls(vocab_size, **{**sizes, **overrides})

    def stack(self, num_layers: int) -> StackConfig:
        """The configuration of one of the two stacks."""
        shared = {f.name for f in dataclasses.fields(self)} & {f.name for f in dataclasses.fields(StackConfig)}
        return StackConfig(num_layers=num_layers, **{name: getattr(self, name) for name in shared})


class TransformerOutput(NamedTuple):
    """Logits in float32 [B, L, V], and what the encoder made of the source [B, S, D]."""

    logits: Array
    encoder_last_hidden_state: Array


class DecoderOutput(NamedTuple):
    """Logits in float32 [B, L, V], and the cache, longer by L (None without one)."""

    logits: Array
    cache: Any


class Transformer(nn.Module):
    """Encoder, decoder and one table of embeddings for source, target and softmax (section 3.4).

    Ids and masks may be lists. Those that do not fit each other are a ValueError; ids that are out of range are one
    where their values are at hand, and give NaN under `jit`.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embedding = Embed(c.vocab_size, c.features, stddev=c.features**-0.5, **types)
        self.encoder = Encoder(c.stack(c.encoder_layers), **types)
        self.decoder = Decoder(c.stack(c.decoder_layers), **types)
        if c.positions == "learned":
            self.positions = LearnedPositions(c.max_length, c.features, stddev=0.02, **types)
        if c.embeddings == "normalised":
            self.embedding_norm = LayerNorm(c.features, c.norm_epsilon, **types)

    def __call__(
        self,
        input_ids: Array,
        decoder_input_ids: Array,
        attention_mask: Array | None = None,
        *,
        position_ids: Array | None = None,
        segment_ids: Array | None = None,
        decoder_position_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        deterministic: bool = True,
    ) -> TransformerOutput:
        """Teacher forcing: the logits of every target position.

        Args:
            input_ids: source tokens [B, S].
            decoder_input_ids: target tokens shifted right [B, L]: the start token, then the target without its end.
            attention_mask: [B, S], 1 or True for source tokens, 0 or False for padding.
            position_ids, segment_ids, decoder_position_ids, decoder_segment_ids: for packed rows: positions that
                restart, and ids that keep examples apart; padding in a segment of its own.
            deterministic: no dropout; otherwise `rngs={"dropout": key}` is needed.
        """
        input_ids = as_ids("input_ids", input_ids)
        decoder_input_ids = as_ids("decoder_input_ids", decoder_input_ids)
        rows = len(input_ids), len(decoder_input_ids)
        require(rows[0] == rows[1], f"input_ids have {rows[0]} rows, but decoder_input_ids {rows[1]}")
        encoded_BSD = self.encode(
            input_ids, attention_mask, position_ids=position_ids, segment_ids=segment_ids, deterministic=deterministic
        )
        logits_BLV, _ = self.decode(
            decoder_input_ids,
            encoded_BSD,
            attention_mask,
            position_ids=decoder_position_ids,
            segment_ids=decoder_segment_ids,
            encoder_segment_ids=segment_ids,
            deterministic=deterministic,
        )
        return TransformerOutput(logits_BLV, encoded_BSD)

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        *,
        position_ids: Array | None = None,
        segment_ids: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Source tokens [B, S] -> [B, S, D]."""
        input_ids = as_ids("input_ids", input_ids)
        mask = AttentionMask() if attention_mask is None else AttentionMask.padding(attention_mask, input_ids.shape)
        if segment_ids is not None:
            mask &= AttentionMask.segments(as_ids("segment_ids", segment_ids, input_ids.shape))
        x_BSD = self._embed(input_ids, position_ids, deterministic)
        return self.encoder(x_BSD, mask, deterministic=deterministic)

    def decode(
        self,
        decoder_input_ids: Array,
        memory: Any,
        attention_mask: Array | None = None,
        *,
        position_ids: Array | None = None,
        segment_ids: Array | None = None,
        encoder_segment_ids: Array | None = None,
        cache: Any = None,
        deterministic: bool = True,
    ) -> DecoderOutput:
        """Target tokens [B, L] over a memory -> logits [B, L, V]; NaN for those past the last slot of the cache.

        Args:
            memory: the encoder's output [B, S, D], or what `project_memory` made of it.
            attention_mask: of the source, [B, S].
            cache: from `empty_cache` or the call before; the tokens given continue what it holds.
        """
        decoder_input_ids = as_ids("decoder_input_ids", decoder_input_ids)
        cross = AttentionMask() if attention_mask is None else AttentionMask.padding(attention_mask)
        own = AttentionMask() if cache is not None else AttentionMask.causal()
        require(
            (segment_ids is None) == (encoder_segment_ids is None),
            "packed rows need the segment_ids of both source and target: only one of them was given",
        )
        if segment_ids is not None and encoder_segment_ids is not None:
            own &= AttentionMask.segments(segment_ids)
            cross &= AttentionMask.segments(segment_ids, encoder_segment_ids)
        filled: Array | int = 0
        reach = decoder_input_ids.shape[1]
        if cache is not None:
            filled, reach = self._extent(cache)
            check_room(filled, reach, decoder_input_ids.shape[1])
            slots_1L = filled + jnp.arange(decoder_input_ids.shape[1])[None, :]
            decoder_input_ids = jnp.where(slots_1L < reach, decoder_input_ids, -1)
        x_BLD = self._embed(decoder_input_ids, position_ids, deterministic, filled, reach)
        x_BLD, cache = self.decoder(x_BLD, memory, own, cross, cache=cache, deterministic=deterministic)
        return DecoderOutput(self.embedding.attend(x_BLD), cache)

    def project_memory(self, encoded_BSD: Array) -> Any:
        """Every decoder layer's keys and values of the encoder's output, computed once for all steps of decoding."""
        return self.decoder.project_memory(encoded_BSD)

    def empty_cache(self, batch: int, slots: int) -> Any:
        """The decoder's cache for `batch` rows, with room for `slots` tokens."""
        return self.decoder.empty_cache(batch, slots)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: DTypeLike = jnp.float32
    ) -> tuple["Transformer", dict[str, Any]]:
        """Reads a folder that `save_pretrained` wrote -> (model, params in the layout that its config asks for).

        Raises:
            ValueError: a file is missing, the folder is of another model type, or names or shapes do not fit.
        """
        fields = read_config(folder)
        kind = fields.pop("model_type", None)
        require(
            kind == MODEL_TYPE,
            f"{folder}/config.json: model_type {shown(kind)}, but only {MODEL_TYPE!r} can be read",
        )
        unknown = sorted(fields.keys() - {f.name for f in dataclasses.fields(TransformerConfig)})
        require(not unknown, f"{folder}/config.json: unknown field {listed(unknown)}")
        try:
            config = TransformerConfig(**{"vocab_size": None, **fields})
        except ValueError as error:
            raise ValueError(f"{folder}/config.json: {error}") from error
        model = cls(config, dtype)
        params = read_params(folder, model.parameter_shapes())
        return model, stack_layers(params) if config.scan_layers else params

    @nn.nowrap
    def save_pretrained(self, folder: str | Path, params: dict[str, Any]) -> None:
        """Writes `config.json` and `model.safetensors` (canonical parameter layout, float32).

        Raises:
            ValueError: the parameters' names or shapes are not the model's, or their values are no floating-point
                numbers or not finite; nothing is written.
        """
        require(isinstance(params, Mapping), f"parameters are a dict of arrays, not {type(params).__name__}")
        config = {"model_type": MODEL_TYPE, **dataclasses.asdict(self.config)}
        save_folder(folder, config, unstack_layers(params), self.parameter_shapes())

    @nn.nowrap
    def parameter_shapes(self) -> dict[str, Any]:
        """The parameters' shapes in the canonical layout. One layer of each stack is traced, nothing is computed."""
        scanned = self.clone(config=dataclasses.replace(self.config, scan_layers=True))
        ids = jnp.zeros((1, 1), jnp.int32)
        return unstack_layers(jax.eval_shape(scanned.init, jax.random.key(0), ids, ids)["params"])

    @nn.nowrap
    def _extent(self, cache: Any) -> tuple[Array, int]:
        """How many slots of a cache are filled, and how many there are."""
        if self.config.scan_layers:
            return cache.length[0], cache.key_BSHK.shape[2]
        return cache[0].length, cache[0].key_BSHK.shape[1]

    def _embed(
        self,
        ids_BL: Array,
        position_ids: Array | None,
        deterministic: bool,
        start: Array | int = 0,
        reach: int | None = None,
    ) -> Array:
        """Embeddings and positions; without `position_ids` those from `start` on, all of them below `reach`."""
        c, (batch, length) = self.config, ids_BL.shape
        rows = reach = reach or length
        if c.positions == "learned":
            require(reach <= c.max_length, f"{reach} tokens, but the position table has {c.max_length} rows")
        if position_ids is None:
            position_ids = start + jnp.arange(length)[None, :]
        else:
            position_ids = as_ids("position_ids", position_ids)
            right = position_ids.shape in ((batch, length), (1, length))
            require(right, f"position_ids must have the shape {(batch, length)}, not {position_ids.shape}")
            rows = max(c.max_length, reach)
        if c.positions == "learned":
            positions_BLD = self.positions(position_ids)
        else:
            table = sinusoidal_positions(rows, c.features, c.positions)
            positions_BLD = take_rows("positions", jnp.asarray(table, self.dtype), position_ids)
        if c.embeddings == "scaled":
            x_BLD = self.embedding(ids_BL) * jnp.asarray(c.features**0.5, self.dtype) + positions_BLD
        else:
            x_BLD = self.embedding_norm(self.embedding(ids_BL) + positions_BLD)
        seed = None if deterministic else dropout_seed(self.make_rng("dropout"))
        return dropout(x_BLD, c.dropout_rate, seed)


def shift_right(labels: Array, start_id: int) -> Array:
    """Labels [B, L] -> decoder inputs [B, L]: the start token, then the labels without the last."""
    as_ids("labels", labels)
    return jax.lax.pad(labels, jnp.asarray(start_id, labels.dtype), ((0, 0, 0), (1, -1, 0)))
