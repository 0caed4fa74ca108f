"""A vector for each text, and search by it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bert_jax.checkpoints import PretrainedModel
from bert_jax.model import BertModel
from bert_jax.pipelines.runner import BATCH_SIZE, Batch, Pipeline, forward
from bert_jax.pipelines.sentence_transformers import EmbedderSettings, read_settings, settings_files
from bert_jax.pooling import pool
from bert_jax.tokenizer import BertTokenizer
from bert_jax.vocabulary import check_texts
from transformer_jax.checkpoints import write_files
from transformer_jax.checks import Range, check_value, listed, require, shown

MEAN = EmbedderSettings()
BLOCK = 4096  # texts that are encoded together


class _WithoutPooler(BertModel):
    """A BertModel whose folder may lack the pooler, which embeddings do without."""

    add_pooling_layer: bool = False


@dataclasses.dataclass(frozen=True)
class TextEmbedder(Pipeline):
    """A vector of D numbers for each text, made of its tokens' last hidden states (Reimers and Gurevych 2019).

    Attributes:
        settings: how; by default the mean over a text's tokens, [CLS] and [SEP] included, not normalised.
    """

    model: BertModel
    settings: EmbedderSettings = MEAN

    model_class: ClassVar[type[PretrainedModel]] = _WithoutPooler

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: DTypeLike = jnp.float32) -> Self:
        """From a folder, or a repository of the hub, of sentence-transformers, or with any BERT and its tokenizer.

        Of sentence-transformers' files are followed: modules.json, the pooling's config.json,
        sentence_bert_config.json and, in config_sentence_transformers.json, prompts. A folder without modules.json
        has the default `settings`: the mean, not normalised. The pooler, which has no part in this, is not read.

        Raises:
            ValueError: as the model's and the tokenizer's `from_pretrained`; or modules or poolings are asked for that
                are not known here.
        """
        folder, settings = read_settings(name)
        model, params = _WithoutPooler.from_pretrained(folder, dtype)
        tokenizer = BertTokenizer.from_pretrained(folder)
        plain = BertModel(model.config, model.dtype, model.param_dtype, add_pooling_layer=False)
        try:
            return cls(plain, params, tokenizer, settings)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that sentence-transformers and `from_pretrained` read.

        Raises:
            ValueError: as the model's `save_pretrained` and the tokenizer's.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder, self.params)
        self.tokenizer.save_pretrained(folder)
        for place, content in settings_files(self.settings, self.model.config.hidden_size, self.longest).items():
            (folder / place).parent.mkdir(exist_ok=True)
            write_files((folder / place).parent, {Path(place).name: content})

    @property
    def longest(self) -> int:
        """Tokens of a text that are read, [CLS] and [SEP] included."""
        return min(self.settings.max_length or super().longest, super().longest)

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self.model.config.hidden_size * len(self.settings.pooling)

    def __call__(
        self, texts: Sequence[str], batch_size: int = BATCH_SIZE, prompt_name: str | None = None
    ) -> np.ndarray:
        """Float32 [n, D], in the order of the texts.

        Of a text with more than `longest` tokens the end is left out, and a warning says of which texts.

        Args:
            prompt_name: of `settings.prompts`, what is put in front of each text; `settings.default_prompt` if None.

        Raises:
            ValueError: no list of str, an unknown prompt, or parameters whose answers are not finite.
        """
        return self._embed(texts, batch_size, prompt_name)

    def search(
        self, query: str, corpus: Sequence[str] | np.ndarray | Array, top_k: int = 10
    ) -> list[tuple[int, float]]:
        """The `top_k` of a corpus that are most like the query: (index, cosine similarity), best first.

        Args:
            corpus: texts, or their embeddings [n, D]. Embed a corpus once that is searched often.

        The prompts "query" and "document" (or "passage", "corpus") are put in front, where the settings have them.

        Raises:
            ValueError: query is no str, the corpus is neither texts nor n finite vectors of the right length, or top_k
                is no integer from 1 up.
        """
        check_value("top_k", top_k, Annotated[int, Range(1)])
        require(isinstance(query, str), f"query must be a str, not {shown(query)}")
        if isinstance(corpus, np.ndarray | Array):
            vectors_ND = np.asarray(corpus)
            right = vectors_ND.ndim == 2 and vectors_ND.shape[1] == self.dimension
            require(right, f"corpus must be [n, {self.dimension}], not {[*vectors_ND.shape]}")
            numbers = np.issubdtype(vectors_ND.dtype, np.floating) and bool(np.isfinite(vectors_ND).all())
            require(numbers, "corpus must hold finite floating-point numbers")
        else:
            vectors_ND = self._embed(corpus, BATCH_SIZE, self._prompt_of("document", "passage", "corpus"))
        query_D = self._embed([query], BATCH_SIZE, self._prompt_of("query"))[0]
        scores_N = _normalized(vectors_ND) @ _normalized(query_D)
        best = np.argsort(-scores_N, kind="stable")[:top_k]
        return [(int(index), float(scores_N[index])) for index in best]

    def _embed(self, texts: Sequence[str], batch_size: int, prompt_name: str | None) -> np.ndarray:
        chosen, known = prompt_name or self.settings.default_prompt, dict(self.settings.prompts)
        require(
            chosen is None or chosen in known,
            f"prompt_name {shown(chosen)}: the prompts are {listed([*known]) or 'none'}",
        )
        prompt = known[chosen] if chosen else ""
        texts = [f"{prompt}{text}" for text in check_texts("texts", texts)]
        if self.settings.lowercase:
            texts = [text.lower() for text in texts]
        rows: list[_Row] = []
        for start in range(0, max(1, len(texts)), BLOCK):
            encodings = self.tokenizer.encode(texts[start : start + BLOCK], max_length=self.longest)
            rows += [
                _Row(np.array(e.ids, np.int32), np.array(e.type_ids, np.int32), bool(e.overflowing)) for e in encodings
            ]
        self.warn_of_cuts(rows, self.longest, depth=2)
        step = functools.partial(_pooled, self.model, self.settings.pooling, self.settings.normalize, self.params)
        return np.stack(self.run(step, rows, batch_size))

    def _prompt_of(self, *names: str) -> str | None:
        return next((name for name in names if name in dict(self.settings.prompts)), None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """What is kept of an encoding: whole it takes 300 bytes a token, which a corpus has no room for."""

    ids: np.ndarray
    type_ids: np.ndarray
    overflowing: bool

    def __len__(self) -> int:
        return len(self.ids)


def _normalized(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _pooled(
    model: BertModel, pooling: tuple[str, ...], normalize: bool, params: Mapping[str, Any], batch: Batch
) -> Array:
    """Float32 [B, D]."""
    return pool(forward(model, params, batch).last_hidden_state, batch["attention_mask"], pooling, normalize)
