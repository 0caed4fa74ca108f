"""The encoder-decoder Transformer (Vaswani et al. 2017)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from transformer_jax.attention import check_room
from transformer_jax.checkpoints import read_config, read_params, save_folder
from transformer_jax.checks import as_ids, listed, require, shown
from transformer_jax.config import TransformerConfig
from transformer_jax.layers import Axes, Embed, LayerNorm, Owner, dropout, dropout_seed, take_rows
from transformer_jax.masks import AttentionMask
from transformer_jax.positions import LearnedPositions, sinusoidal_positions
from transformer_jax.stack import Decoder, Encoder, stack_layers, unstack_layers
from transformer_jax.weights import model_folder

MODEL_TYPE = "transformer_jax"


class TransformerOutput(NamedTuple):
    """Logits in float32 [B, L, V], and what the encoder made of the source [B, S, D]."""

    logits: Array
    encoder_last_hidden_state: Array


class DecoderOutput(NamedTuple):
    """Logits in float32 [B, L, V], and the cache, longer by L (None without one)."""

    logits: Array
    cache: Any


class ShortSoftmax(NamedTuple):
    """What the logits of a few words are made of: their rows of the table [N, D], and float32 biases [N] or None."""

    table_ND: Array
    bias_N: Array | None


class Transformer(Owner):
    """Encoder, decoder, and one table of embeddings for source, target and softmax (section 3.4), or more of them.

    Ids and masks may be lists. Those that do not fit each other are a ValueError; ids that are out of range are one
    where their values are at hand, and give NaN under `jit`.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def parameter_axes(self) -> dict[str, Axes]:
        return {"final_logits_bias": ("vocab",)}

    def setup(self) -> None:
        c = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        table: dict[str, Any] = {"features": c.features, "stddev": c.features**-0.5, **types}
        self.embedding = Embed(c.vocab_size, **table)
        if not c.share_encoder_decoder_embeddings:
            self.decoder_embedding = Embed(c.target_vocab_size, **table)
        if not c.tie_word_embeddings:
            self.lm_head = Embed(c.target_vocab_size, **table)
        if c.final_logits_bias:
            zeros, shape = nn.initializers.zeros, (c.target_vocab_size,)
            self.final_logits_bias = self.param("final_logits_bias", zeros, shape, self.param_dtype)
        self.encoder = Encoder(c.stack("encoder"), **types)
        self.decoder = Decoder(c.stack("decoder"), **types)
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
        x_BSD = self._embed(self.embedding, input_ids, position_ids, deterministic)
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
        history_BWT: Array | None = None,
        softmax: ShortSoftmax | None = None,
        deterministic: bool = True,
    ) -> DecoderOutput:
        """Target tokens [B, L] over a memory -> logits [B, L, V]; NaN for those past the last slot of the cache.

        Args:
            memory: the encoder's output [B, S, D], or what `project_memory` made of it.
            attention_mask: of the source, [B, S].
            cache: from `empty_cache` or the call before; the tokens given continue what it holds.
            history_BWT: the tokens given are the last ones of W beams, which stand at one position; see
                `transformer_jax.decoding.Tokens`. The cache has T * W slots.
            softmax: from `short_softmax`; the logits are then of its words alone, [B, L, N].
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
        reach = length = decoder_input_ids.shape[1]
        if cache is not None:
            filled, reach = self._extent(cache)
            check_room(filled, reach, length)
            slots_1L = filled + jnp.arange(length)[None, :]
            decoder_input_ids = jnp.where(slots_1L < reach, decoder_input_ids, -1)
        steps_L = jnp.arange(length)
        if history_BWT is not None:
            fits = cache is not None and position_ids is None and reach % length == 0
            require(fits, f"history_BWT needs a cache with a multiple of {length} slots, and no position_ids")
            filled, reach, steps_L = filled // length, reach // length, jnp.zeros_like(steps_L)
            own &= AttentionMask(query_mask_BLS=_slots_of_beams(history_BWT[:, :, :reach], filled))
        where_1L = (filled + steps_L)[None, :]
        x_BLD = self._embed(
            self._target_table(), decoder_input_ids, position_ids, deterministic, where_1L=where_1L, reach=reach
        )
        x_BLD, cache = self.decoder(x_BLD, memory, own, cross, cache=cache, deterministic=deterministic)
        return DecoderOutput(self._logits(x_BLD, softmax), cache)

    def cross_attentions(
        self, input_ids: Array, decoder_input_ids: Array, attention_mask: Array | None = None
    ) -> tuple[Array, ...]:
        """The weights by which each decoder layer attends to the source: N float32 arrays [B, H, L, S].

        They are computed for looking at them, by the same parameters; the arguments are those of the call.
        """
        input_ids, decoder_input_ids = as_ids("input_ids", input_ids), as_ids("decoder_input_ids", decoder_input_ids)
        mask = AttentionMask() if attention_mask is None else AttentionMask.padding(attention_mask, input_ids.shape)
        encoded_BSD = self.encode(input_ids, attention_mask)
        x_BLD = self._embed(self._target_table(), decoder_input_ids, None, True)
        return self.decoder.cross_attentions(x_BLD, encoded_BSD, AttentionMask.causal(), mask)

    def project_memory(self, encoded_BSD: Array) -> Any:
        """Every decoder layer's keys and values of the encoder's output, computed once for all steps of decoding."""
        return self.decoder.project_memory(encoded_BSD)

    def short_softmax(self, ids_N: Array) -> ShortSoftmax:
        """What `decode` needs for the logits of some words alone, gathered once for all steps of decoding."""
        table_ND = self._output_table().some_rows(ids_N)
        has_bias = self.config.final_logits_bias
        return ShortSoftmax(table_ND, self.final_logits_bias[ids_N].astype(jnp.float32) if has_bias else None)

    def empty_cache(self, batch: int, slots: int) -> Any:
        """The decoder's cache for `batch` rows, with room for `slots` tokens."""
        return self.decoder.empty_cache(batch, slots)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: DTypeLike = jnp.float32
    ) -> tuple["Transformer", dict[str, Any]]:
        """Reads a folder of `save_pretrained`, or a Marian -> (model, params in the layout that its config asks for).

        A Marian is a folder in Hugging Face's layout, or a repository of the hub, whose config.json says model_type
        "marian"; see `transformer_jax.marian`.

        Raises:
            ValueError: there is no such folder, a file is missing, the folder is of another model type, or names or
                shapes do not fit.
        """
        folder = model_folder(folder)
        fields = read_config(folder)
        kind = fields.pop("model_type", None)
        if kind == "marian":
            from transformer_jax.marian import load_marian  # which is made of what is here

            return load_marian(folder, fields, dtype)
        require(
            kind == MODEL_TYPE,
            f"{folder}/config.json: model_type {shown(kind)}, but only {MODEL_TYPE!r} and 'marian' can be read",
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
            return cache.length[0], cache.slots
        return cache[0].length, cache[0].slots

    def _target_table(self) -> Embed:
        return self.embedding if self.config.share_encoder_decoder_embeddings else self.decoder_embedding

    def _output_table(self) -> Embed:
        return self._target_table() if self.config.tie_word_embeddings else self.lm_head

    def _logits(self, x_BLD: Array, softmax: ShortSoftmax | None = None) -> Array:
        """What the decoder made, [B, L, D] -> float32 [B, L, V], or of a short softmax [B, L, N]."""
        if softmax is None:
            bias_V = self.final_logits_bias.astype(jnp.float32) if self.config.final_logits_bias else None
            logits_BLV = self._output_table().attend(x_BLD)
        else:
            bias_V, logits_BLV = softmax.bias_N, self._output_table().attend(x_BLD, softmax.table_ND)
        return logits_BLV if bias_V is None else logits_BLV + bias_V[None, None, :]

    def _embed(
        self,
        table: Embed,
        ids_BL: Array,
        position_ids: Array | None,
        deterministic: bool,
        where_1L: Array | None = None,
        reach: int | None = None,
    ) -> Array:
        """Rows of a table and positions; without `position_ids` those at `where_1L`, all of them below `reach`."""
        c, (batch, length) = self.config, ids_BL.shape
        rows = reach = reach or length
        if position_ids is None:
            fits = c.positions != "learned" or reach <= c.max_length
            require(fits, f"{reach} tokens, but the position table has {c.max_length} rows")
            position_ids = jnp.arange(length)[None, :] if where_1L is None else where_1L
        else:
            position_ids = as_ids("position_ids", position_ids)
            right = position_ids.shape in ((batch, length), (1, length))
            require(right, f"position_ids must have the shape {(batch, length)}, not {position_ids.shape}")
            rows = max(c.max_length, reach)
        if c.positions == "learned":
            positions_BLD = self.positions(position_ids)
        else:
            sinusoids_PD = sinusoidal_positions(rows, c.features, c.positions)
            positions_BLD = take_rows("positions", jnp.asarray(sinusoids_PD, self.dtype), position_ids)
        x_BLD = table(ids_BL)
        if c.embeddings == "scaled":
            x_BLD *= jnp.asarray(c.features**0.5, self.dtype)
        x_BLD += positions_BLD
        if c.embeddings == "normalised":
            x_BLD = self.embedding_norm(x_BLD)
        seed = None if deterministic else dropout_seed(self.make_rng("dropout"))
        return dropout(x_BLD, c.dropout_rate, seed)


def _slots_of_beams(history_BWT: Array, position: Array | int) -> Array:
    """Boolean [B, W, T * W]: the slots of a cache, W at each position, that hold each beam's past and its own token."""
    B, W, T = history_BWT.shape
    whose_BWTW = history_BWT[..., None] == jnp.arange(W)[None, None, None, :]
    past_T = jnp.arange(T) <= position
    return (whose_BWTW & past_T[None, None, :, None]).reshape(B, W, T * W)


def shift_right(labels: Array, start_id: int) -> Array:
    """Labels [B, L] -> decoder inputs [B, L]: the start token, then the labels without the last."""
    as_ids("labels", labels)
    return jax.lax.pad(labels, jnp.asarray(start_id, labels.dtype), ((0, 0, 0), (1, -1, 0)))
