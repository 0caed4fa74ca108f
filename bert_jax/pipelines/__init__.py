"""From texts to answers: each pipeline is a model, its tokenizer, and one call.

All of them sort their texts by length, pad them to few shapes, run one jitted function, and answer in the order given.
"""

from bert_jax.pipelines.answer import Answer, Answers, QuestionAnswerer
from bert_jax.pipelines.classify import TextClassifier
from bert_jax.pipelines.embed import TextEmbedder
from bert_jax.pipelines.fill_mask import Filled, FillMask
from bert_jax.pipelines.sentence_transformers import EmbedderSettings
from bert_jax.pipelines.tag import Entity, TokenTagger
from transformer_jax.texts import TextError, TextsCut

__all__ = [
    "Answer",
    "Answers",
    "EmbedderSettings",
    "Entity",
    "FillMask",
    "Filled",
    "QuestionAnswerer",
    "TextClassifier",
    "TextEmbedder",
    "TextError",
    "TextsCut",
    "TokenTagger",
]
