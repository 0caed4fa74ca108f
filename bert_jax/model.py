"""BERT (Devlin et al. 2019): embeddings, the Transformer's encoder, and the pooler."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bert_jax.checkpoints import PretrainedModel
from bert_jax.config import BertConfig
from transformer_jax.checks import as_ids, check_ids, require
from transformer_jax.layers import Embed, LayerNorm, Projection, dropout, dropout_seed
from transformer_jax.masks import AttentionMask
from transformer_jax.positions import LearnedPositions
from transformer_jax.stack import Encoder


class BertOutput(NamedTuple):
    """The last layer's output [B, L, D], and tanh of a projection of its first token [B, D] (None without a pooler)."""

    last_hidden_state: Array
    pooler_output: Array | None


class BertEmbeddings(nn.Module):
    """Token, position and type embeddings, summed, normalised, with dropout (section 3, figure 2)."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        options: dict[str, Any] = {"stddev": c.initializer_range, **types}
        self.word = Embed(c.vocab_size, c.hidden_size, **options)
        self.position = LearnedPositions(c.max_position_embeddings, c.hidden_size, **options)
        self.token_type = Embed(c.type_vocab_size, c.hidden_size, rows=None, **options)
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps, **types)

    def __call__(
        self,
        input_ids: Array,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """[B, L] ids -> [B, L, D]. What is refused is said in `BertModel`."""
        c = self.config
        input_ids = as_ids("input_ids", input_ids)
        shape, rows = input_ids.shape, c.max_position_embeddings
        if position_ids is None:
            require(shape[1] <= rows, f"{shape[1]} tokens a row, but max_position_embeddings is {rows}")
            position_ids = jnp.arange(shape[1])[None, :]
        else:
            position_ids = as_ids("position_ids", position_ids, shape)
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, shape[1]), jnp.int32)
        else:
            token_type_ids = as_ids("token_type_ids", token_type_ids, shape)
        check_ids("input_ids", input_ids, c.vocab_size, "vocab_size")
        check_ids("position_ids", position_ids, rows, "max_position_embeddings")
        check_ids("token_type_ids", token_type_ids, c.type_vocab_size, "type_vocab_size")
        x_BLD = self.word(input_ids) + self.position(position_ids) + self.token_type(token_type_ids)
        seed = None if deterministic else dropout_seed(self.make_rng("dropout"))
        return dropout(self.norm(x_BLD), self.config.hidden_dropout_prob, seed)


class BertModel(PretrainedModel):
    """Embeddings, encoder and, unless `add_pooling_layer` is False, the pooler."""

    add_pooling_layer: bool = True

    def setup(self) -> None:
        c = self.config
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embeddings = BertEmbeddings(c, **types)
        self.encoder = Encoder(c.stack, **types)
        if self.add_pooling_layer:
            D = c.hidden_size
            self.pooler = Projection(
                "BD,DE->BE", (D, D), ("embed", None), initializer_range=c.initializer_range, **types
            )

    def __call__(
        self,
        input_ids: Array,
        token_type_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        segment_ids: Array | None = None,
        deterministic: bool = True,
    ) -> BertOutput:
        """Encodes rows of tokens.

        Args:
            input_ids: token ids [B, L].
            token_type_ids: 0 for the first text, 1 for the second; 0 by default.
            attention_mask: 1 or True for tokens, 0 or False for padding; all tokens by default.
            position_ids: 0, 1, 2 ... by default; given for packed rows, where they restart with each example.
            segment_ids: for packed rows: an id for each example, and one of its own for padding. Only tokens of
                the same example attend to each other.
            deterministic: no dropout; otherwise `rngs={"dropout": key}` is needed.

        Ids and masks are all of the shape of `input_ids`; nothing is broadcast. Lists of lists are converted.
        Values cannot be looked at under `jit`: there an id out of range makes its row NaN, and an integer other
        than 1 in `attention_mask` is padding.

        Raises:
            ValueError: another dtype, rank or shape, nothing in them, rows longer than the position table, or,
                where values are at hand, ids out of range or a mask of other numbers than 0 and 1.
        """
        x_BLD = self.embeddings(input_ids, token_type_ids, position_ids, deterministic)
        shape = x_BLD.shape[:2]
        mask = None if attention_mask is None else AttentionMask.padding(attention_mask, shape)
        if segment_ids is not None:
            mask = AttentionMask.segments(as_ids("segment_ids", segment_ids, shape)) & mask
        x_BLD = self.encoder(x_BLD, mask, deterministic=deterministic)
        return BertOutput(x_BLD, jnp.tanh(self.pooler(x_BLD[:, 0])) if self.add_pooling_layer else None)
