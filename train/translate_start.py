"""What a Transformer's training starts from: the model that --model names, and the vocabulary of the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bert_jax import BertTokenizer, warm_start
from train.data.parallel import Pair, train_sentencepiece
from train.errors import blaming
from train.terminal import left_out
from transformer_jax import Transformer, Translator, unstack_layers
from transformer_jax.checkpoints import read_config
from transformer_jax.checks import shown
from transformer_jax.seq2seq import MODEL_TYPE
from transformer_jax.tokenizer import FILES, JsonTokenizer, load_tokenizer, save_tokenizer


class Start(NamedTuple):
    """A model to go on from; the parameters have a dict per layer.

    Attributes:
        name: what --model says.
    """

    name: str
    model: Transformer
    params: dict[str, Any]
    processor: Any


def load_start(name: str, seed: int) -> Start | None:
    """What --model names, a Transformer or a BERT; None without it.

    Raises:
        InputError: it is neither, or its folder is wrong.
    """
    if not name:
        return None
    with blaming(f"--model {name}"):
        kind = read_config(name).get("model_type", "bert")
        if kind not in (MODEL_TYPE, "bert"):
            raise ValueError(f"its config.json says model_type {shown(kind)}, but needed is {MODEL_TYPE!r} or 'bert'")
        if kind == "bert":
            model, params = warm_start(name, seed=seed)
            return Start(name, model, params, JsonTokenizer(BertTokenizer.from_pretrained(name).backend))
        translator = Translator.from_pretrained(name)
        return Start(name, translator.model, unstack_layers(translator.params), translator.tokenizer)


def vocabulary_folder(run: Path) -> Path:
    """Where a run keeps its vocabulary."""
    return run / "tokenizer"


def load_vocabulary(
    run: Path, going_on: bool, start: Start | None, pairs: Sequence[Pair], size: int
) -> tuple[Any, list[tuple[str, str]]]:
    """The run's own vocabulary if it goes on, that of --model, or one trained on the pairs; and what to say of it."""
    if going_on and any((vocabulary_folder(run) / name).exists() for name in FILES):
        with blaming(f"--run {run}"):
            processor = load_tokenizer(vocabulary_folder(run))
        return processor, [("vocabulary", f"{processor.vocab_size():,} pieces, those of the run")]
    if start:
        return start.processor, [("vocabulary", f"{start.processor.vocab_size():,} pieces of {start.name}")]
    vocabulary = train_sentencepiece(pairs, size)
    notes = [("vocabulary", f"{vocabulary.processor.vocab_size():,} pieces learned from the training pairs")]
    return vocabulary.processor, [*notes, *left_out("vocabulary: ", vocabulary.left_out)]


def keep_vocabulary(run: Path, processor: Any) -> None:
    """Writes it into the run."""
    if jax.process_index() == 0:
        vocabulary_folder(run).mkdir(exist_ok=True)
        save_tokenizer(vocabulary_folder(run), processor)


def spelling_note(processor: Any, held_out: Sequence[Pair]) -> list[tuple[str, str]]:
    """How many held-out targets the vocabulary cannot give letter by letter, as one without capitals cannot."""
    lost = sum(processor.decode(processor.encode(target)) != target for _, target in held_out)
    words = (
        f"{lost:,} of {len(held_out):,} held-out targets are not spelled with it as they are (capitals, spaces, ...)"
    )
    return [("vocabulary", f"{words}: scores count that")] if lost else []
