"""BERT with a head: those of its pretraining (section 3.1) and of its fine-tuning (section 4)."""

from typing import Any, ClassVar, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers
from jax import Array
from jax.typing import DTypeLike

from bert_jax.config import BertConfig
from bert_jax.model import Bert, BertInputs, BertModel, BertOutput
from transformer_jax.checks import as_array, as_ids, check_ids, require
from transformer_jax.layers import ACTIVATIONS, Axes, Embed, LayerNorm, Owner, Projection, dropout, dropout_seed

States = tuple[Array, ...] | None

# --- what comes out: float32 logits, and hidden states and attentions where asked for (see `Bert.__call__`) --------


class BertForPreTrainingOutput(NamedTuple):
    """Float32 logits of the masked tokens, [B, P, V] (or [B, L, V]), and of the next sentence, [B, 2]; 0: it is."""

    prediction_logits: Array
    seq_relationship_logits: Array
    hidden_states: States = None
    attentions: States = None


class LogitsOutput(NamedTuple):
    """Float32 logits, of the shape that the model's class says."""

    logits: Array
    hidden_states: States = None
    attentions: States = None


class QuestionAnsweringOutput(NamedTuple):
    """Float32 logits [B, L] of each token being the answer's first, and its last."""

    start_logits: Array
    end_logits: Array
    hidden_states: States = None
    attentions: States = None


class JointOutput(NamedTuple):
    """Float32 logits of the intents, [B, labels], and of each token's slot, [B, L, slot labels]."""

    intent_logits: Array
    slot_logits: Array
    hidden_states: States = None
    attentions: States = None


# --- what heads are made of --------------------------------------------------------------------------------------


class BertWithHead(Bert):
    """A BERT with parts of its own behind the encoder.

    A head says in `setup` which parts it has besides `self.bert`, and in `head` what they make of the encoder's output.
    """

    reads_pooler: ClassVar[bool] = True

    def setup(self) -> None:
        self.bert = BertModel(self.config, self.dtype, self.param_dtype, add_pooling_layer=self.reads_pooler)

    def run(self, inputs: BertInputs) -> Any:
        """What the head makes of the encoder's output."""
        return self.head(self.bert.run(inputs), inputs)

    def head(self, out: BertOutput, inputs: BertInputs) -> Any:
        """The output that the class returns."""
        raise TypeError(f"{type(self).__name__} must say what its head makes of the encoder's output")

    @nn.nowrap
    def _projection(self, equation: str, outputs: int) -> Projection:
        return Projection(
            equation,
            (self.config.hidden_size, outputs),
            ("embed", None),
            initializer_range=self.config.initializer_range,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def _classify(self, classifier: Projection, x: Array, deterministic: bool) -> Array:
        """Dropout, then float32 logits."""
        c = self.config
        rate = c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout
        seed = None if deterministic else dropout_seed(self.make_rng("dropout"))
        return classifier(dropout(x, rate, seed)).astype(jnp.float32)


class MaskedLMHead(Owner):
    """A layer of width D, then the products with a table [V, D], and a bias [V].

    The table is that of the word embeddings unless the configuration unties it.
    """

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
        if not c.tie_word_embeddings:
            self.decoder = Embed(c.vocab_size, D, c.initializer_range, **types)
        self.bias = self.param("bias", initializers.zeros, (c.vocab_size,), self.param_dtype)

    def __call__(self, x_BLD: Array, word: Embed) -> Array:
        """[B, L, D] -> float32 [B, L, V]."""
        h_BLD = self.norm(ACTIVATIONS[self.config.hidden_act](self.transform(x_BLD)))
        table = word if self.config.tie_word_embeddings else self.decoder
        return table.attend(h_BLD) + self.bias.astype(jnp.float32)[None, None, :]


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


# --- pretraining -------------------------------------------------------------------------------------------------


class BertForPreTraining(BertWithHead):
    """BERT with both heads of its pretraining; returns a `BertForPreTrainingOutput`."""

    reads_masked_positions: ClassVar[bool] = True

    def setup(self) -> None:
        super().setup()
        self.predictions = MaskedLMHead(self.config, self.dtype, self.param_dtype)
        self.next_sentence = self._projection("BD,DE->BE", 2)

    def head(self, out: BertOutput, inputs: BertInputs) -> BertForPreTrainingOutput:
        h_BPD = gather_positions(out.last_hidden_state, inputs.masked_positions)
        return BertForPreTrainingOutput(
            self.predictions(h_BPD, self.bert.embeddings.word),
            self.next_sentence(cast(Array, out.pooler_output)).astype(jnp.float32),
            out.hidden_states,
            out.attentions,
        )


class BertForMaskedLM(BertWithHead):
    """BERT with the masked-LM head, without a pooler, as in Hugging Face's; returns logits [B, P, V] or [B, L, V]."""

    reads_pooler: ClassVar[bool] = False
    reads_masked_positions: ClassVar[bool] = True

    def setup(self) -> None:
        super().setup()
        self.predictions = MaskedLMHead(self.config, self.dtype, self.param_dtype)

    def head(self, out: BertOutput, inputs: BertInputs) -> LogitsOutput:
        h_BPD = gather_positions(out.last_hidden_state, inputs.masked_positions)
        return LogitsOutput(self.predictions(h_BPD, self.bert.embeddings.word), out.hidden_states, out.attentions)


class BertForNextSentencePrediction(BertWithHead):
    """BERT with the next-sentence head; returns logits [B, 2]. Class 0 says that the second text follows the first."""

    def setup(self) -> None:
        super().setup()
        self.next_sentence = self._projection("BD,DE->BE", 2)

    def head(self, out: BertOutput, inputs: BertInputs) -> LogitsOutput:
        logits_B2 = self.next_sentence(cast(Array, out.pooler_output)).astype(jnp.float32)
        return LogitsOutput(logits_B2, out.hidden_states, out.attentions)


# --- fine-tuning -------------------------------------------------------------------------------------------------


class BertForSequenceClassification(BertWithHead):
    """BERT that classifies rows, or with one label scores them; returns logits [B, labels]."""

    label_fields: ClassVar[dict[str, str]] = {"classifier": "id2label"}

    def setup(self) -> None:
        super().setup()
        self.classifier = self._projection("BD,DE->BE", self.config.num_labels)

    def head(self, out: BertOutput, inputs: BertInputs) -> LogitsOutput:
        logits_BE = self._classify(self.classifier, cast(Array, out.pooler_output), inputs.deterministic)
        return LogitsOutput(logits_BE, out.hidden_states, out.attentions)


class BertForTokenClassification(BertWithHead):
    """BERT that tags tokens, without a pooler; returns logits [B, L, labels]."""

    reads_pooler: ClassVar[bool] = False
    label_fields: ClassVar[dict[str, str]] = {"classifier": "id2label"}

    def setup(self) -> None:
        super().setup()
        self.classifier = self._projection("BLD,DE->BLE", self.config.num_labels)

    def head(self, out: BertOutput, inputs: BertInputs) -> LogitsOutput:
        logits_BLE = self._classify(self.classifier, out.last_hidden_state, inputs.deterministic)
        return LogitsOutput(logits_BLE, out.hidden_states, out.attentions)


class BertForQuestionAnswering(BertWithHead):
    """BERT that finds an answer's two ends in a text, without a pooler; returns a `QuestionAnsweringOutput`."""

    reads_pooler: ClassVar[bool] = False

    def setup(self) -> None:
        super().setup()
        count = self.config.num_labels
        require(count == 2, f"BertForQuestionAnswering has 2 labels, start and end, not {count}: give num_labels=2")
        self.qa_outputs = self._projection("BLD,DE->BLE", 2)

    def head(self, out: BertOutput, inputs: BertInputs) -> QuestionAnsweringOutput:
        logits_BL2 = self.qa_outputs(out.last_hidden_state).astype(jnp.float32)
        return QuestionAnsweringOutput(logits_BL2[..., 0], logits_BL2[..., 1], out.hidden_states, out.attentions)


class BertForMultipleChoice(BertWithHead):
    """BERT that chooses among texts; returns logits [B, C].

    All inputs are [B, C, L]: C choices an example. Hidden states and attentions have B * C rows, as in Hugging Face's.
    """

    input_rank: ClassVar[int] = 3

    def setup(self) -> None:
        super().setup()
        self.classifier = self._projection("BD,DE->BE", 1)

    def run(self, inputs: BertInputs) -> LogitsOutput:
        """Each choice is a row of its own."""
        shape = as_array("input_ids", inputs.input_ids).shape
        fits = len(shape) == 3 and 0 not in shape
        require(fits, f"input_ids must be [rows, choices, tokens] with at least one of each, not {shape}")
        rows = {}
        for name in ("input_ids", "token_type_ids", "attention_mask", "position_ids", "segment_ids"):
            if getattr(inputs, name) is not None:
                array_BCL = as_array(name, getattr(inputs, name))
                require(array_BCL.shape == shape, f"{name} must have the shape {shape}, not {array_BCL.shape}")
                rows[name] = array_BCL.reshape(-1, shape[2])
        out = super().run(inputs._replace(**rows))
        return out._replace(logits=out.logits.reshape(shape[:2]))

    def head(self, out: BertOutput, inputs: BertInputs) -> LogitsOutput:
        logits_B1 = self._classify(self.classifier, cast(Array, out.pooler_output), inputs.deterministic)
        return LogitsOutput(logits_B1, out.hidden_states, out.attentions)


class BertForJointIntentAndSlots(BertWithHead):
    """BERT that says at once what a sentence asks for and which of its words are what (Chen et al. 2019, section 3.2).

    It returns a `JointOutput`; the intents are `config.id2label`, the tags `config.slot_labels`.
    """

    label_fields: ClassVar[dict[str, str]] = {"intent_classifier": "id2label", "slot_classifier": "slot_labels"}

    def setup(self) -> None:
        super().setup()
        slots = len(self.config.slot_labels)
        require(slots > 0, "BertForJointIntentAndSlots needs a configuration with slot_labels, the names of the tags")
        self.intent_classifier = self._projection("BD,DE->BE", self.config.num_labels)
        self.slot_classifier = self._projection("BLD,DE->BLE", slots)

    def head(self, out: BertOutput, inputs: BertInputs) -> JointOutput:
        return JointOutput(
            self._classify(self.intent_classifier, cast(Array, out.pooler_output), inputs.deterministic),
            self._classify(self.slot_classifier, out.last_hidden_state, inputs.deterministic),
            out.hidden_states,
            out.attentions,
        )
