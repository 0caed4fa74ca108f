"""BERT in JAX and Flax: the models, their tokenizer, Hugging Face's files, and pipelines.

Letters in array names are those of `transformer_jax`; P counts masked positions of a row.
"""

# Configuration and text
from bert_jax.config import BertConfig

# Models
from bert_jax.heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForPreTrainingOutput,
    LogitsOutput,
)

# Generation
from bert_jax.mask_predict import MaskPredictOutput, mask_predict

# The masked-LM objective
from bert_jax.masking import MaskedBatch, mask_tokens, maskable
from bert_jax.model import BertEmbeddings, BertModel, BertOutput

# Pipelines
from bert_jax.pipelines import FillMask
from bert_jax.tokenizer import BertTokenizer

# Encoder-decoders that start from a BERT
from bert_jax.warm_start import warm_start

__all__ = [
    "BertConfig",
    "BertEmbeddings",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForPreTrainingOutput",
    "BertModel",
    "BertOutput",
    "BertTokenizer",
    "FillMask",
    "LogitsOutput",
    "MaskPredictOutput",
    "MaskedBatch",
    "mask_predict",
    "mask_tokens",
    "maskable",
    "warm_start",
]
