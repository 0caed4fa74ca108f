"""The nine tasks of GLUE (Wang et al. 2019) as TFDS has them: columns, splits and the score that counts."""

from typing import NamedTuple

from train.errors import InputError
from transformer_jax.checks import printed


class GlueTask(NamedTuple):
    """Where a task's data is and how it is scored.

    Attributes:
        data: what `--data` is.
        text: the column of the text, and `pair` that of the second one if there are two.
        labels: the classes in GLUE's order, of two the one that F1 is of last; none means a score from 0 to 5.
        validation: the splits to evaluate on; the test splits have no labels.
        metric: the score that BERT (Devlin et al. 2019, table 1) was reported with, as rows of metrics.jsonl name it.
    """

    data: str
    text: str
    pair: str | None
    labels: tuple[str, ...]
    metric: str
    label: str = "label"
    train: str = "train"
    validation: tuple[str, ...] = ("validation",)


_ENTAILMENT = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
_MNLI = ("validation_matched", "validation_mismatched")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask("tfds:glue/cola", "sentence", None, ("unacceptable", "acceptable"), "eval/matthews"),
    "sst2": GlueTask("tfds:glue/sst2", "sentence", None, ("negative", "positive"), "eval/accuracy"),
    "mrpc": GlueTask("tfds:glue/mrpc", "sentence1", "sentence2", ("not_equivalent", "equivalent"), "eval/f1"),
    "stsb": GlueTask("tfds:glue/stsb", "sentence1", "sentence2", (), "eval/spearman"),
    "qqp": GlueTask("tfds:glue/qqp", "question1", "question2", ("not_duplicate", "duplicate"), "eval/f1"),
    "mnli": GlueTask("tfds:glue/mnli", "premise", "hypothesis", _THREE, "eval/accuracy", validation=_MNLI),
    "qnli": GlueTask("tfds:glue/qnli", "question", "sentence", _ENTAILMENT, "eval/accuracy"),
    "rte": GlueTask("tfds:glue/rte", "sentence1", "sentence2", _ENTAILMENT, "eval/accuracy"),
    "wnli": GlueTask("tfds:glue/wnli", "sentence1", "sentence2", ("not_entailment", "entailment"), "eval/accuracy"),
}


def glue(name: str, option: str = "--data") -> GlueTask:
    """The task of a name, such as `sst2`.

    Raises:
        InputError: GLUE has no such task.
    """
    if name not in GLUE:
        raise InputError(f"{option}: GLUE has no task {printed(name)}; it has {', '.join(GLUE)}")
    return GLUE[name]
