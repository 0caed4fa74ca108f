"""A BERT of one small layer that reads letters."""

from bert_jax import BertConfig, BertModel
from tests.bert_jax.folders import random_params

LETTERS = "abcdefgh"
POSITIONS = 12


def save_bert(folder):
    """Writes it, without a head, and its vocabulary; returns the folder."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "?"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=POSITIONS,
    )  # fmt: skip
    model = BertModel(config)
    model.save_pretrained(folder, random_params(model))
    return folder
