"""The nine tasks of GLUE (Wang et al. 2019) as TFDS has them: columns, splits and the score that counts."""

from typing import NamedTuple

from train.errors import InputError
from transformer_jax.checks import printed


class GlueTask(NamedTuple):
    """Where a task's data is and how it is scored.

    Attributes:
        data: what `--data` is.
        text: the column of the text, and `pair` that of the second one if there are two.
        num_labels: how many classes; 1 means regression (a score from 0 to 5).
        validation: the splits to evaluate on; the test splits have no labels.
        metric: the score that BERT (Devlin et al. 2019, table 1) was reported with, as rows of metrics.jsonl name it.
    """

    data: str
    text: str
    pair: str | None
    num_labels: int
    metric: str
    label: str = "label"
    train: str = "train"
    validation: tuple[str, ...] = ("validation",)


_MNLI = ("validation_matched", "validation_mismatched")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask("tfds:glue/cola", "sentence", None, 2, "eval/matthews"),
    "sst2": GlueTask("tfds:glue/sst2", "sentence", None, 2, "eval/accuracy"),
    "mrpc": GlueTask("tfds:glue/mrpc", "sentence1", "sentence2", 2, "eval/f1"),
    "stsb": GlueTask("tfds:glue/stsb", "sentence1", "sentence2", 1, "eval/spearman"),
    "qqp": GlueTask("tfds:glue/qqp", "question1", "question2", 2, "eval/f1"),
    "mnli": GlueTask("tfds:glue/mnli", "premise", "hypothesis", 3, "eval/accuracy", validation=_MNLI),
    "qnli": GlueTask("tfds:glue/qnli", "question", "sentence", 2, "eval/accuracy"),
    "rte": GlueTask("tfds:glue/rte", "sentence1", "sentence2", 2, "eval/accuracy"),
    "wnli": GlueTask("tfds:glue/wnli", "sentence1", "sentence2", 2, "eval/accuracy"),
}


def glue(name: str, option: str = "--data") -> GlueTask:
    """The task of a name, such as `sst2`.

    Raises:
        InputError: GLUE has no such task.
    """
    if name not in GLUE:
        raise InputError(f"{option}: GLUE has no task {printed(name)}; it has {', '.join(GLUE)}")
    return GLUE[name]
