"""BERT in JAX and Flax: the models, their tokenizer, Hugging Face's files, and pipelines.

Letters in array names are those of `transformer_jax`; P counts masked positions of a row, C the choices of an
example.
"""

# Configuration and text
from bert_jax.config import BertConfig

# Models
from bert_jax.heads import (
    BertForJointIntentAndSlots,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForPreTrainingOutput,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    JointOutput,
    LogitsOutput,
    QuestionAnsweringOutput,
)

# Generation
from bert_jax.mask_predict import MaskPredictOutput, mask_predict

# The masked-LM objective
from bert_jax.masking import MaskedBatch, mask_tokens, maskable
from bert_jax.model import BertEmbeddings, BertModel, BertOutput

# Pipelines
from bert_jax.pipelines import (
    Answer,
    Answers,
    EmbedderSettings,
    Entity,
    Filled,
    FillMask,
    QuestionAnswerer,
    TextClassifier,
    TextEmbedder,
    TextError,
    TextsCut,
    TokenTagger,
)
from bert_jax.tokenizer import BertTokenizer

# Encoder-decoders that start from a BERT
from bert_jax.warm_start import warm_start

__all__ = [
    "Answer",
    "Answers",
    "BertConfig",
    "BertEmbeddings",
    "BertForJointIntentAndSlots",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForPreTrainingOutput",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertOutput",
    "BertTokenizer",
    "EmbedderSettings",
    "Entity",
    "FillMask",
    "Filled",
    "JointOutput",
    "LogitsOutput",
    "MaskPredictOutput",
    "MaskedBatch",
    "QuestionAnswerer",
    "QuestionAnsweringOutput",
    "TextClassifier",
    "TextEmbedder",
    "TextError",
    "TextsCut",
    "TokenTagger",
    "mask_predict",
    "mask_tokens",
    "maskable",
    "warm_start",
]
