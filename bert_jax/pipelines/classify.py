"""Labels, or numbers, for texts."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
from jax import Array

from bert_jax.checkpoints import PretrainedModel
from bert_jax.config import ProblemType
from bert_jax.heads import BertForSequenceClassification
from bert_jax.pipelines.runner import BATCH_SIZE, Batch, Pipeline, forward

Labels = list[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class TextClassifier(Pipeline):
    """Says of each text, or pair of texts, what `config.id2label` names.

    What the model's numbers mean is `config.problem_type`: one class of several, several classes at once, or a number.
    Where that says nothing, a model with one label gives a number, and one with several a class.
    """

    model: BertForSequenceClassification

    model_class: ClassVar[type[PretrainedModel]] = BertForSequenceClassification

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = BATCH_SIZE
    ) -> list[Labels] | list[float]:
        """For each text every label with its probability, the likeliest first; of a regression the number.

        The probabilities of a text add up to 1, unless several classes can be right at once: then each label has its
        own. A regression with several labels gives (label, number), in the order of the labels. Of texts with more
        tokens than the model reads the end is left out, of a pair that of the longer text, and a warning says of which.

        Args:
            pairs: second texts, for a model that was trained with pairs.

        Raises:
            ValueError: no lists of str, of one length, or parameters whose answers are not finite.
        """
        encodings = self.tokenizer.encode(texts, pairs, self.longest)
        self.warn_of_cuts(encodings, self.longest)
        step = functools.partial(_scores, self.model, self.problem_type, self.params)
        rows = [row.tolist() for row in self.run(step, encodings, batch_size)]
        labels = self.model.config.id2label
        answers: list[Any]
        if self.problem_type == "regression":
            answers = [row[0] if len(labels) == 1 else [*zip(labels, row, strict=True)] for row in rows]
        else:
            answers = [sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1]) for row in rows]
        return answers

    @property
    def problem_type(self) -> ProblemType:
        """What the model's numbers mean."""
        c = self.model.config
        return c.problem_type or ("regression" if c.num_labels == 1 else "single_label_classification")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    model: BertForSequenceClassification, problem_type: ProblemType, params: dict[str, Any], batch: Batch
) -> Array:
    """Float32 [B, labels]: probabilities, or of a regression the numbers themselves."""
    out = forward(model, params, batch)
    if problem_type == "regression":
        return out.logits
    return jax.nn.sigmoid(out.logits) if problem_type == "multi_label_classification" else jax.nn.softmax(out.logits)
