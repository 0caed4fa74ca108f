"""Sentence vectors: pairs with a score, or pairs that belong together (Reimers and Gurevych 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from bert_jax import BertConfig, BertModel, BertTokenizer
from bert_jax.checkpoints import PretrainedModel
from bert_jax.pipelines.sentence_transformers import EmbedderSettings, settings_files
from bert_jax.pooling import pool
from train.data.request_tasks import similar_requests
from train.data.requests import Request
from train.data.tables import number_of, read_table, text_of
from train.errors import InputError
from train.state import Batch, Sums
from train.tasks.base import INPUTS, Features, FinetuneTask, Settings
from train.tasks.classification import correlations
from transformer_jax import cross_entropy

# Cosines are multiplied by it in front of the softmax, as sentence-transformers does.
SCALE = 20.0
ROUNDING = 1e-6  # of cosines: the same text in two batches has not quite the same vector
SETTINGS = EmbedderSettings(pooling=("mean",), normalize=True)


class Similar(NamedTuple):
    """Two texts, and how alike they are; None where pairs that belong together are all there is."""

    place: str
    text: str
    pair: str
    score: float | None


class Similarity(FinetuneTask):
    """Vectors are the mean of the last layer's outputs, of length 1.

    With scores the cosine of two vectors learns them, brought from their range in training to 0 to 1, by squared
    error. Without (`--columns.label ""`) a text learns to find its own pair among all of the batch (Henderson et al.
    2017, section 4.3): larger batches are better, and a batch must not hold two pairs alike.
    """

    roles: ClassVar[Mapping[str, str]] = {"text": "sentence1", "pair": "sentence2", "label": "score"}
    optional = ("label",)
    head = BertModel

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.scored = "label" in self.columns
        self.best = ("eval/spearman" if self.scored else "eval/recall_at_1", "max")

    def read(self, entry: str, option: str, split: str) -> list[Similar]:
        return [
            Similar(
                row.place, text_of(row, "text"), text_of(row, "pair"), number_of(row, "label") if self.scored else None
            )
            for row in read_table(entry, self.columns, option=option, split=split)
        ]

    def embedded(self, requests: Sequence[Request], place: str) -> list[Similar]:
        pairs = similar_requests(requests)
        best = max(pair.score for pair in pairs)
        return [
            Similar(place, pair.text, pair.other, pair.score if self.scored else None)
            for pair in pairs
            if self.scored or pair.score == best
        ]

    def texts(self, rows: Sequence[Similar]) -> list[str]:
        return [text for row in rows for text in (row.text, row.pair)]

    def labels(self, rows: Sequence[Similar], start: BertConfig | None) -> dict[str, Any]:
        known = [row.score for row in rows if row.score is not None]
        self._low, self._high = (min(known), max(known)) if known else (0.0, 1.0)
        if self._low == self._high:
            raise InputError(f"{rows[0].place}: all scores are {self._low}; scores that differ are needed")
        return {}

    def features(
        self, rows: Sequence[Similar], tokenizer: BertTokenizer, config: BertConfig, *, training: bool
    ) -> Features:
        encodings = tokenizer.encode(
            [text for row in rows for text in (row.text, row.pair)], None, self.settings.max_length
        )
        examples = []
        for index, row in enumerate(rows):
            score = 0.0 if row.score is None else (row.score - self._low) / (self._high - self._low)
            examples.append(tokenizer.pad(encodings[2 * index : 2 * index + 2]) | {"labels": np.float32(score)})
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        return Features(examples, [None] * len(rows), {"texts cut to --max-length": cut})  # type: ignore[arg-type]

    def apply(self, model: PretrainedModel, params: Any, batch: Batch, **options: Any) -> Any:
        """The vectors of both texts of each pair, [B, 2, D]."""
        rows, _, length = batch["input_ids"].shape
        ids, types, mask = (batch[name].reshape(-1, length) for name in INPUTS)
        out: Any = model.apply({"params": params}, ids, types, mask, **options)
        vectors = pool(out.last_hidden_state, mask, SETTINGS.pooling, SETTINGS.normalize)
        return vectors.reshape(rows, 2, -1)

    def sums(self, out: Array, batch: Batch) -> Sums:
        first_BD, second_BD = out[:, 0], out[:, 1]
        weights = batch["weights"]
        if self.scored:
            cosines = jnp.sum(first_BD * second_BD, axis=-1)
            return {"loss_per_row": jnp.sum(jnp.square(cosines - batch["labels"]) * weights)}
        # A row that only fills the batch up is nobody's pair.
        cosines_BB = jnp.where(weights[None, :] > 0, SCALE * first_BD @ second_BD.T, -jnp.inf)
        own = jnp.arange(len(cosines_BB))
        return {"loss_per_row": cross_entropy(jnp.where(weights[:, None] > 0, cosines_BB, 0.0), own, weights)[0]}

    def outputs(self, out: Any) -> dict[str, Array]:
        return {"vectors": out}

    def answers(
        self, rows: Sequence[Similar], features: Features, outputs: Sequence[dict[str, np.ndarray]], config: BertConfig
    ) -> list[dict[str, Any]]:
        vectors = np.stack([output["vectors"] for output in outputs])
        records = []
        for index, row in enumerate(rows):
            cosines = vectors[:, 1] @ vectors[index, 0]
            record = {"text": row.text, "pair": row.pair, "cosine": float(cosines[index])}
            nearer = int(np.sum(cosines > cosines[index] + ROUNDING))
            records.append(record | ({"score": row.score} if self.scored else {"rank": nearer + 1}))
        return records

    def scores(
        self, rows: Sequence[Similar], answers: Sequence[dict[str, Any]], config: BertConfig
    ) -> dict[str, float]:
        if not self.scored:
            return {"eval/recall_at_1": float(np.mean([answer["rank"] == 1 for answer in answers]))}
        return correlations([answer["cosine"] for answer in answers], [row.score or 0.0 for row in rows])

    def files(self, config: BertConfig) -> dict[str, bytes]:
        return settings_files(SETTINGS, config.hidden_size, self.settings.max_length)
