"""What all pipelines share: how they are read from a folder, and how texts go through a model."""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bert_jax.checkpoints import PretrainedModel
from bert_jax.tokenizer import BertTokenizer, Ids
from transformer_jax.checks import Range, check_value, require
from transformer_jax.texts import TextsCut, progress

BATCH_SIZE = 32

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A model and its tokenizer.

    Raises:
        ValueError: the tokenizer has more tokens than the model. Fewer is normal.
    """

    model: Any
    params: dict[str, Any]
    tokenizer: BertTokenizer

    model_class: ClassVar[type[PretrainedModel]]

    def __post_init__(self) -> None:
        tokens, rows = self.tokenizer.vocab_size, self.model.config.vocab_size
        require(tokens <= rows, f"the tokenizer has {tokens} tokens, but the model was made for {rows} (vocab_size)")

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: DTypeLike = jnp.float32) -> Self:
        """From a folder, or a repository of the hub, that holds the model and its tokenizer.

        Raises:
            ValueError: as the model's and the tokenizer's `from_pretrained` and the class; it names the folder.
        """
        model, params = cls.model_class.from_pretrained(name, dtype)
        tokenizer = BertTokenizer.from_pretrained(name)
        try:
            return cls(model, params, tokenizer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    @property
    def longest(self) -> int:
        """Tokens of a text that the model reads, [CLS] and [SEP] included."""
        return self.model.config.max_position_embeddings

    def run(self, step: Callable[[Batch], Any], encodings: Sequence[Ids], batch_size: int = BATCH_SIZE) -> list[Any]:
        """What a step makes of each encoding, in their order.

        Args:
            step: a jitted function, from the arrays of `BertTokenizer.pad` to a tree of arrays with a row for each of
                theirs. It meets few shapes.

        Raises:
            ValueError: batch_size is no integer from 1 up, or numbers that come out are not finite.
        """
        check_value("batch_size", batch_size, Annotated[int, Range(1, 2**16)])
        order = sorted(range(len(encodings)), key=lambda index: len(encodings[index]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

        def launched() -> Iterator[Any]:
            for rows in batches:
                yield rows, step(self.tokenizer.pad_to_bucket([encodings[index] for index in rows], self.longest))

        results: list[Any] = [None] * len(encodings)
        with progress(len(order), len(batches)) as advance:
            # A batch is on its way while the one before is read.
            for (rows, found), _ in itertools.pairwise(itertools.chain(launched(), [None])):
                leaves, tree = jax.tree.flatten(jax.device_get(found))
                for row, index in enumerate(rows):
                    own = [leaf[row] for leaf in leaves]
                    finite = all(np.isfinite(leaf).all() for leaf in own)
                    require(
                        finite, "the model's answers are not finite: its parameters hold nan, infinity or far too much"
                    )
                    results[index] = jax.tree.unflatten(tree, own)
                advance(len(rows))
        return results

    def warn_of_cuts(self, encodings: Sequence[Ids], longest: int, depth: int = 1) -> None:
        """Warns whoever called the pipeline, `depth` calls above, of texts that were cut."""
        cut = [index for index, encoding in enumerate(encodings) if encoding.overflowing]
        if cut:
            warnings.warn(TextsCut(longest, cut), stacklevel=depth + 2)


def forward(model: PretrainedModel, params: Mapping[str, Any], batch: Batch, **options: Any) -> Any:
    """The model's output for the arrays of `BertTokenizer.pad`."""
    inputs = (batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    return model.apply({"params": params}, *inputs, **options)
