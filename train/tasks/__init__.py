"""The fine-tuning tasks by name; `train.finetune` knows none of them."""

from train.tasks.base import ColumnsConfig, Features, FinetuneTask, Settings, TaskObjective
from train.tasks.classification import Classification
from train.tasks.joint import Joint
from train.tasks.multiple_choice import MultipleChoice
from train.tasks.question_answering import QuestionAnswering
from train.tasks.similarity import Similarity
from train.tasks.tagging import Tagging

TASKS: dict[str, type[FinetuneTask]] = {
    "classification": Classification,
    "similarity": Similarity,
    "tagging": Tagging,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
    "joint": Joint,
}

__all__ = ["TASKS", "ColumnsConfig", "Features", "FinetuneTask", "Settings", "TaskObjective"]
