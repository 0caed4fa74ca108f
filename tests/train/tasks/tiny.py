"""What the tests of the tasks share: words with ids, the settings of a task, and batches of its examples."""

import numpy as np
import pytest

from bert_jax import BertConfig
from train.data.padded import stack
from train.errors import InputError
from train.tasks import ColumnsConfig, Settings
from train.tasks.base import NO_LABEL

# "ax" is the pieces a ##x.
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij.?", *(f"##{letter}" for letter in "abcdxy")]
PADDING = {"input_ids": 0, "token_type_ids": 0, "attention_mask": 0, "tags": NO_LABEL}
CONFIG = BertConfig(
    vocab_size=len(VOCABULARY), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=32,
)  # fmt: skip


def ids(tokens):
    """The ids of tokens between blanks."""
    return [VOCABULARY.index(token) for token in tokens.split()]


def tokens(example):
    """The tokens of an example, as they stand in its `input_ids`."""
    rows = np.asarray(example["input_ids"])
    return " ".join(VOCABULARY[i] for i in rows) if rows.ndim == 1 else [tokens({"input_ids": row}) for row in rows]


def settings(*data, max_length=16, stride=2, problem_type="single-label", **columns):
    return Settings(data, ColumnsConfig(**columns), problem_type, max_length, stride)


def batch_of(examples, length=None, filled=0):
    """A batch padded to a length, whose last `filled` rows, copies of the first one, have no weight."""
    longest = max(example["input_ids"].shape[-1] for example in examples)
    batch = stack([*examples, *[examples[0]] * filled], length or longest, PADDING)
    return batch | {"weights": np.array([1.0] * len(examples) + [0.0] * filled, np.float32)}


def refusal(call, *arguments, **options):
    """The one line that an InputError is."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000, message
    return message


def log_softmax(logits):
    """In float64, over the last axis."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
