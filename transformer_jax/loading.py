"""The folders that a Translator is made of: models that decide together, and their tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from transformer_jax.checks import require
from transformer_jax.seq2seq import Transformer
from transformer_jax.tokenizer import FILES_OF_TOKENIZERS, SENTENCEPIECE, file_name, load_tokenizer, serialized
from transformer_jax.weights import model_folder

# What is fetched of a repository of the hub beside the weights.
MORE_FILES = ("generation_config.json", *FILES_OF_TOKENIZERS)

Model = tuple[Transformer, dict[str, Any]]


def load_models(
    folder: Path, dtype: DTypeLike, others: Sequence[str | Path] = ()
) -> tuple[Model, Any, tuple[Model, ...]]:
    """The model of a folder, its tokenizer, and the models of other folders.

    Raises:
        ValueError: a folder cannot be read, its tokenizer is not that of the model, or the others have another one.
    """
    tokenizer = load_tokenizer(folder)
    model, params = Transformer.from_pretrained(folder, dtype)
    name, words, wanted = file_name(tokenizer), tokenizer.vocab_size(), model.config.vocab_size
    # An spm.model that is cut off can be a smaller vocabulary; tables longer than the others are common.
    fits = words == wanted if name == SENTENCEPIECE else words <= wanted
    require(fits, f"{folder}/{name} has {words} words, but vocab_size in config.json is {wanted}")
    more = []
    for each in others:
        other = model_folder(each, MORE_FILES)
        same = serialized(load_tokenizer(other)) == serialized(tokenizer)
        require(same, f"{other} has another tokenizer than {folder}: models that decide together share one")
        more.append(Transformer.from_pretrained(other, dtype))
    return (model, params), tokenizer, tuple(more)
