"""What the jobs train on: the losses of pretraining and of translation, as sums and weights."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from bert_jax import BertForMaskedLM, BertForPreTraining, BertTokenizer
from bert_jax.masking import mask_tokens, maskable
from train.state import Batch, Sums
from transformer_jax import Transformer, cross_entropy, shift_right


class PretrainObjective:
    """The losses, with masking drawn on the device as a pure function of the key.

    Attributes:
        terms: the masked-LM loss and, if the model has a head for it, the next-sentence loss.
    """

    terms: tuple[str, ...]

    def __init__(
        self, model: BertForPreTraining | BertForMaskedLM, tokenizer: BertTokenizer, max_length: int, whole_word: bool
    ):
        self._model = model
        self._next_sentence = isinstance(model, BertForPreTraining)
        self.terms = ("mlm_loss", "nsp_loss") if self._next_sentence else ("mlm_loss",)
        self._maskable = functools.partial(maskable, special_ids=np.asarray(tokenizer.special_ids))
        self._mask = functools.partial(
            mask_tokens,
            num_predictions=math.ceil(0.15 * max_length),
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            special_ids=tokenizer.special_ids,
            continuation_V=tokenizer.continuation_mask() if whole_word else None,
        )

    def prepare(self, batch: Batch, key: Array) -> tuple[Batch, Sums]:
        masked = self._mask(batch["input_ids"], self._maskable(batch["input_ids"]), key)
        predictions = jnp.sum(masked.weights_BP)
        weights = {
            "mlm_loss": predictions,
            "mlm_accuracy": predictions,
            "tokens": jnp.sum(batch["attention_mask"].astype(jnp.float32)),
        }
        if self._next_sentence:
            weights |= dict.fromkeys(("nsp_loss", "nsp_accuracy"), jnp.float32(batch["input_ids"].shape[0]))
        prepared = batch | {
            "input_ids": masked.input_ids_BL,
            "masked_positions": masked.positions_BP,
            "masked_labels": masked.labels_BP,
            "masked_weights": masked.weights_BP,
        }
        return prepared, weights

    def sums(self, params: Any, batch: Batch, dropout_key: Array | None) -> Sums:
        out: Any = self._model.apply(
            {"params": params},
            batch["input_ids"],
            batch["token_type_ids"],
            batch["attention_mask"],
            masked_positions=batch["masked_positions"],
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )
        logits_BPV, labels_BP, weights_BP = out[0], batch["masked_labels"], batch["masked_weights"]
        sums = {
            "mlm_loss": cross_entropy(logits_BPV, labels_BP, weights_BP)[0],
            "mlm_accuracy": jnp.sum((jnp.argmax(logits_BPV, -1) == labels_BP) * weights_BP),
        }
        if self._next_sentence:
            logits_B2, label_B = out.seq_relationship_logits, batch["next_sentence_label"]
            sums["nsp_loss"] = cross_entropy(logits_B2, label_B)[0]
            sums["nsp_accuracy"] = jnp.sum((jnp.argmax(logits_B2, -1) == label_B).astype(jnp.float32))
        return sums


class TranslateObjective:
    """Label-smoothed cross entropy of the target tokens, given all of their own segment before them and its source.

    A batch is packed, with the names that `Transformer.__call__` has for it; see `train.data.packing`.
    """

    terms: tuple[str, ...] = ("smoothed_loss",)

    def __init__(self, model: Transformer, label_smoothing: float):
        self._model, self._label_smoothing = model, label_smoothing

    def prepare(self, batch: Batch, key: Array) -> tuple[Batch, Sums]:
        tokens = jnp.sum((batch["decoder_segment_ids"] > 0).astype(jnp.float32))
        return batch, dict.fromkeys(("smoothed_loss", "nll_loss", "accuracy", "tokens"), tokens)

    def sums(self, params: Any, batch: Batch, dropout_key: Array | None) -> Sums:
        packed: dict[str, Any] = dict(batch)
        input_ids, labels_BL = packed.pop("input_ids"), packed.pop("labels")
        start_id = self._model.config.decoder_start_id
        begins_BL = packed["decoder_position_ids"] == 0  # each segment; what padding begins with does not count
        out: Any = self._model.apply(
            {"params": params},
            input_ids,
            jnp.where(begins_BL, start_id, shift_right(labels_BL, start_id)),
            **packed,
            deterministic=dropout_key is None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )
        logits_BLV, weights_BL = out.logits, (packed["decoder_segment_ids"] > 0).astype(jnp.float32)
        smoothed = cross_entropy(logits_BLV, labels_BL, weights_BL, label_smoothing=self._label_smoothing)
        return {
            "smoothed_loss": smoothed[0],
            "nll_loss": cross_entropy(logits_BLV, labels_BL, weights_BL)[0],
            "accuracy": jnp.sum((jnp.argmax(logits_BLV, -1) == labels_BL) * weights_BL),
        }
