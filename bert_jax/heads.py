"""BERT with the heads of its pretraining: masked language model and next sentence (section 3.1)."""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers
from jax import Array
from jax.typing import DTypeLike

from bert_jax.checkpoints import PretrainedModel
from bert_jax.config import BertConfig
from bert_jax.model import BertModel
from transformer_jax.checks import as_ids, check_ids, require
from transformer_jax.layers import ACTIVATIONS, Axes, Embed, LayerNorm, Owner, Projection


class BertForPreTrainingOutput(NamedTuple):
    """Float32 logits of the masked tokens, [B, P, V] (or [B, L, V]), and of the next sentence, [B, 2]; 0: it is."""

    prediction_logits: Array
    seq_relationship_logits: Array


class LogitsOutput(NamedTuple):
    """Float32 logits."""

    logits: Array


class MaskedLMHead(Owner):
    """A layer of width D, then the products with the word embeddings, which it shares, and a bias [V]."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def parameter_axes(self) -> dict[str, Axes]:
        return {"bias": ("vocab",)}

    def setup(self) -> None:
        c, D = self.config, self.config.hidden_size
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.transform = Projection(
            "BLD,DE->BLE", (D, D), ("embed", None), initializer_range=c.initializer_range, **types
        )
        self.norm = LayerNorm(D, c.layer_norm_eps, **types)
        self.bias = self.param("bias", initializers.zeros, (c.vocab_size,), self.param_dtype)

    def __call__(self, x_BLD: Array, word: Embed) -> Array:
        """[B, L, D] -> float32 [B, L, V]."""
        h_BLD = self.norm(ACTIVATIONS[self.config.hidden_act](self.transform(x_BLD)))
        return word.attend(h_BLD) + self.bias.astype(jnp.float32)[None, None, :]


def _next_sentence(config: BertConfig, dtype: DTypeLike, param_dtype: DTypeLike) -> Projection:
    return Projection(
        "BD,DE->BE",
        (config.hidden_size, 2),
        ("embed", None),
        initializer_range=config.initializer_range,
        dtype=dtype,
        param_dtype=param_dtype,
    )


def gather_positions(x_BLD: Array, masked_positions: Array | None) -> Array:
    """The rows' vectors at the given positions, [B, P, D]; all of them without positions.

    Raises ValueError as `BertModel` does for its ids; under `jit` vectors of positions out of range are NaN.
    """
    if masked_positions is None:
        return x_BLD
    rows, length, _ = x_BLD.shape
    at_BP = as_ids("masked_positions", masked_positions)
    require(len(at_BP) == rows, f"masked_positions has {len(at_BP)} rows, but input_ids {rows}")
    check_ids("masked_positions", at_BP, length, f"the rows have {length} tokens")
    at_BP = jnp.asarray(at_BP, jnp.int32)
    at_BP = jnp.where(at_BP < 0, length, at_BP)  # a negative index would count from the end
    return jnp.take_along_axis(x_BLD, at_BP[:, :, None], axis=1, mode="fill")


class BertForPreTraining(PretrainedModel):
    """BERT with both heads of its pretraining."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.param_dtype)
        self.predictions = MaskedLMHead(self.config, self.dtype, self.param_dtype)
        self.next_sentence = _next_sentence(self.config, self.dtype, self.param_dtype)

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
    ) -> BertForPreTrainingOutput:
        """Logits of both heads; the inputs are those of `BertModel`.

        Args:
            masked_positions: int [B, P]: only these positions reach the vocabulary projection, which is most of
                a small model's work. All L by default.
        """
        out = self.bert(input_ids, token_type_ids, attention_mask, position_ids, segment_ids, deterministic)
        h_BPD = gather_positions(out.last_hidden_state, masked_positions)
        return BertForPreTrainingOutput(
            self.predictions(h_BPD, self.bert.embeddings.word),
            self.next_sentence(cast(Array, out.pooler_output)).astype(jnp.float32),
        )


class BertForMaskedLM(PretrainedModel):
    """BERT with the masked-LM head; without a pooler, as in Hugging Face's."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.param_dtype, add_pooling_layer=False)
        self.predictions = MaskedLMHead(self.config, self.dtype, self.param_dtype)

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
    ) -> LogitsOutput:
        """Logits [B, P, V] at `masked_positions`, by default at all positions; inputs as in `BertForPreTraining`."""
        out = self.bert(input_ids, token_type_ids, attention_mask, position_ids, segment_ids, deterministic)
        h_BPD = gather_positions(out.last_hidden_state, masked_positions)
        return LogitsOutput(self.predictions(h_BPD, self.bert.embeddings.word))


class BertForNextSentencePrediction(PretrainedModel):
    """BERT with the next-sentence head: class 0 says that the second text follows the first."""

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.param_dtype)
        self.next_sentence = _next_sentence(self.config, self.dtype, self.param_dtype)

    def __call__(
        self,
        input_ids: Array,
        token_type_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        segment_ids: Array | None = None,
        deterministic: bool = True,
    ) -> LogitsOutput:
        """Logits [B, 2]; the inputs are those of `BertModel`."""
        out = self.bert(input_ids, token_type_ids, attention_mask, position_ids, segment_ids, deterministic)
        return LogitsOutput(self.next_sentence(cast(Array, out.pooler_output)).astype(jnp.float32))
