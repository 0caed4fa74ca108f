"""The BERT that a run starts from: what --model names."""

import warnings
from typing import Any, NamedTuple

from bert_jax import BertConfig, BertTokenizer
from bert_jax.vocabulary import write_vocabulary
from bert_jax.weights import model_folder
from train.data.fingerprint import fingerprint_of_model
from train.errors import InputError, blaming
from transformer_jax.checkpoints import read_config

# The fields of a configuration that say what a model is for: not what another one is that starts from it.
UNNAMED: dict[str, Any] = {"id2label": BertConfig.id2label, "slot_labels": (), "problem_type": None}


class BertStart(NamedTuple):
    """A BERT's configuration and vocabulary, the fingerprint of its files, and what to say about them.

    The files must stay what they are until the run has a checkpoint.
    """

    config: BertConfig
    tokenizer: BertTokenizer
    fingerprint: dict[str, str]
    notes: list[tuple[str, str]]


def load_bert(name: str) -> BertStart:
    """Reads all but the weights of --model.

    Raises:
        InputError: there is no such model, a file is broken, the vocabulary cannot be exported again, or it has more
            words than the model.
    """
    with blaming(f"--model {name}"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = model_folder(name)
        config = BertConfig.from_json(read_config(folder))
        tokenizer = BertTokenizer.from_pretrained(name)
        write_vocabulary(tokenizer.backend.get_vocab())  # now, not in the end
        if tokenizer.vocab_size > config.vocab_size:
            raise InputError(
                f"--model {name}: its tokenizer has {tokenizer.vocab_size} words, its config.json vocab_size "
                f"{config.vocab_size}; both must be of one model"
            )
        notes = [("model", str(warning.message)) for warning in caught]
        return BertStart(config, tokenizer, fingerprint_of_model(folder), notes)
