"""BERT (Devlin et al. 2019): embeddings, the Transformer's encoder, and the pooler."""

from typing import Any, ClassVar, NamedTuple

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
    """What BERT makes of rows of tokens, in its `dtype`.

    Attributes:
        last_hidden_state: the last layer's output [B, L, D].
        pooler_output: tanh of a projection of its first token [B, D]; None without a pooler.
        hidden_states, attentions: where asked for, see `BertModel`.
    """

    last_hidden_state: Array
    pooler_output: Array | None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


class BertInputs(NamedTuple):
    """The arguments of a call; see `BertModel`."""

    input_ids: Array
    token_type_ids: Array | None
    attention_mask: Array | None
    position_ids: Array | None
    segment_ids: Array | None
    deterministic: bool
    masked_positions: Array | None
    output_hidden_states: bool
    output_attentions: bool


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
        begin = {**options, "sinusoid_range": c.position_range}
        self.position = LearnedPositions(c.max_position_embeddings, c.hidden_size, **begin)
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


class Bert(PretrainedModel):
    """The one way to call a BERT, with or without a head."""

    reads_masked_positions: ClassVar[bool] = False

    def __call__(
        self,
        input_ids: Array,
        token_type_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        segment_ids: Array | None = None,
        deterministic: bool = True,
        *,
        masked_positions: Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Any:
        """Encodes rows of tokens, and does with them what the model is for: see what its class says it returns.

        Args:
            input_ids: token ids [B, L].
            token_type_ids: 0 for the first text, 1 for the second; 0 by default.
            attention_mask: 1 or True for tokens, 0 or False for padding; all tokens by default.
            position_ids: 0, 1, 2 ... by default; given for packed rows, where they restart with each example.
            segment_ids: for packed rows: an id for each example, and one of its own for padding. Only tokens of
                the same example attend to each other.
            deterministic: no dropout; otherwise `rngs={"dropout": key}` is needed.
            masked_positions: int [B, P], for models with a masked-LM head: only these positions reach the vocabulary
                projection, which is most of a small model's work. All L by default.
            output_hidden_states: also what went into each layer, the embeddings first, and the last layer's output:
                N + 1 arrays [B, L, D] in `dtype`.
            output_attentions: also the layers' attention weights, N float32 arrays [B, H, L, L]. They are computed
                once more, without dropout.

        Ids and masks are all of the shape of `input_ids`; nothing is broadcast. Lists of lists are converted.
        Values cannot be looked at under `jit`: there an id out of range makes its row NaN, and an integer other
        than 1 in `attention_mask` is padding.

        Raises:
            ValueError: another dtype, rank or shape, nothing in them, rows longer than the position table,
                `masked_positions` for a model without a masked-LM head, or, where values are at hand, ids out of range
                or a mask of other numbers than 0 and 1.
        """
        reads = self.reads_masked_positions or masked_positions is None
        require(reads, f"{type(self).__name__} takes no masked_positions: only models with a masked-LM head do")
        inputs = BertInputs(
            input_ids,
            token_type_ids,
            attention_mask,
            position_ids,
            segment_ids,
            deterministic,
            masked_positions,
            output_hidden_states,
            output_attentions,
        )
        return self.run(inputs)

    def run(self, inputs: BertInputs) -> Any:
        """What `__call__` returns."""
        raise TypeError(f"{type(self).__name__} must say what it makes of its inputs")


class BertModel(Bert):
    """Embeddings, encoder and, unless `add_pooling_layer` is False, the pooler; returns a `BertOutput`."""

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

    def run(self, inputs: BertInputs) -> BertOutput:
        """The encoder's output; nothing here reads `masked_positions`."""
        i = inputs
        x_BLD = self.embeddings(i.input_ids, i.token_type_ids, i.position_ids, i.deterministic)
        shape = x_BLD.shape[:2]
        mask = None if i.attention_mask is None else AttentionMask.padding(i.attention_mask, shape)
        if i.segment_ids is not None:
            mask = AttentionMask.segments(as_ids("segment_ids", i.segment_ids, shape)) & mask
        y_BLD, hidden_states, attentions = self.encoder.states(
            x_BLD,
            mask,
            deterministic=i.deterministic,
            hidden_states=i.output_hidden_states,
            attentions=i.output_attentions,
        )
        pooled_BD = jnp.tanh(self.pooler(y_BLD[:, 0])) if self.add_pooling_layer else None
        return BertOutput(y_BLD, pooled_BD, hidden_states, attentions)
