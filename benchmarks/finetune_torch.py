"""The same fine-tuning by PyTorch's Trainer: the peer of `python -m train finetune`.

    python benchmarks/finetune_torch.py --task tagging --model FOLDER --data train.conll --test-data test.conll \\
        --epochs 2 --batch-size 32 --learning-rate 1e-4 --seeds 3 --out result.json

Data, features, labels and scores are this project's own, so that both sides see the same ids and are judged alike; the
model, its head, the batches, the optimizer, the schedule (linear, a tenth of the steps of warm-up) and the loop are
those of transformers 5 on PyTorch. The scores are those after the last step, on --test-data, which nothing is chosen
by. Needs `pip install -e '.[parity]' accelerate`.
"""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
import tyro
from record import about

from bert_jax import BertConfig, BertTokenizer
from train.data.padded import in_order, lengths_of, stack
from train.tasks import TASKS, ColumnsConfig, Settings
from train.tasks.base import NO_LABEL
from transformer_jax.checkpoints import read_config


@dataclasses.dataclass(frozen=True)
class Options:
    """As those of `python -m train finetune`."""

    task: str
    model: str
    data: str
    test_data: str
    out: Path
    columns: ColumnsConfig = dataclasses.field(default_factory=ColumnsConfig)
    problem_type: Literal["single-label", "multi-label", "regression"] = "single-label"
    epochs: float = 2
    batch_size: int = 32
    learning_rate: float = 1e-4
    max_length: int = 128
    stride: int = 64
    seeds: int = 3
    threads: int = 2


class Joint(torch.nn.Module):
    """Intent and slots over transformers' BertModel: it has no such class."""

    def __init__(self, folder: str, intents: int, slots: int) -> None:
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(folder)
        width = self.bert.config.hidden_size
        self.dropout = torch.nn.Dropout(self.bert.config.hidden_dropout_prob)
        self.intents, self.slots = torch.nn.Linear(width, intents), torch.nn.Linear(width, slots)
        for layer in (self.intents, self.slots):
            torch.nn.init.normal_(layer.weight, std=self.bert.config.initializer_range)
            torch.nn.init.zeros_(layer.bias)

    def forward(self, input_ids: Any, token_type_ids: Any, attention_mask: Any, intent: Any, tags: Any) -> Any:
        out = self.bert(input_ids, attention_mask, token_type_ids)
        intents, slots = self.intents(self.dropout(out.pooler_output)), self.slots(self.dropout(out.last_hidden_state))
        entropy = torch.nn.functional.cross_entropy
        loss = entropy(intents, intent) + entropy(slots.flatten(0, 1), tags.flatten(), ignore_index=NO_LABEL)
        return {"loss": loss, "intents": intents, "slots": slots}


def make_model(options: Options, config: BertConfig) -> Any:
    """transformers' model with the task's head, drawn by torch's seed."""
    if options.task == "joint":
        return Joint(options.model, config.num_labels, len(config.slot_labels))
    kind = {
        "classification": transformers.BertForSequenceClassification,
        "tagging": transformers.BertForTokenClassification,
        "question-answering": transformers.BertForQuestionAnswering,
        "multiple-choice": transformers.BertForMultipleChoice,
    }[options.task]
    labels = {} if options.task in ("question-answering", "multiple-choice") else {"num_labels": config.num_labels}
    problem = {"problem_type": config.problem_type} if options.task == "classification" else {}
    return kind.from_pretrained(options.model, **labels, **problem)


# Our name of a target -> transformers'.
TARGETS = {"tags": "labels", "start": "start_positions", "end": "end_positions"}


def torch_batch(batch: dict[str, np.ndarray], task: str) -> dict[str, Any]:
    """A batch under transformers' names."""
    names = {} if task == "joint" else TARGETS
    return {
        names.get(name, name): torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.int64))
        for name, array in batch.items()
        if name != "weights"
    }


def outputs_of(out: Any, task: str, problem_type: str) -> dict[str, np.ndarray]:
    """What `FinetuneTask.answers` needs, from PyTorch's output."""
    if task == "joint":
        return {"intent": out["intents"].softmax(-1).numpy(), "tags": out["slots"].argmax(-1).numpy()}
    if task == "tagging":
        return {"tags": out.logits.argmax(-1).numpy()}
    if task == "question-answering":
        return {"start": out.start_logits.numpy(), "end": out.end_logits.numpy()}
    if problem_type == "regression":
        return {"scores": out.logits.numpy()}
    return {"scores": (out.logits.sigmoid() if problem_type == "multi-label" else out.logits.softmax(-1)).numpy()}


def run_seed(options: Options, seed: int, task: Any, config: BertConfig, rows: Any, features: Any, padding: Any) -> Any:
    """(scores after the last step, seconds of training) of one seed."""
    transformers.set_seed(seed)
    model = make_model(options, config)

    def collate(examples: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        return torch_batch(stack(examples, int(lengths_of(examples).max()), padding), options.task)

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=options.batch_size, num_train_epochs=options.epochs,
            learning_rate=options.learning_rate, lr_scheduler_type="linear", warmup_steps=0.1, weight_decay=0.01,
            max_grad_norm=1.0, seed=seed, save_strategy="no", report_to=[], logging_steps=50, use_cpu=True,
            remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, train_dataset=features[0].examples, data_collator=collate, callbacks=[]
        )
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    model.eval()
    found: list[dict[str, np.ndarray]] = [{}] * len(features[1].examples)
    with torch.inference_mode():
        for members, batch in in_order(features[1].examples, padding, options.batch_size):
            out = outputs_of(model(**torch_batch(batch, options.task)), options.task, options.problem_type)
            for row, member in enumerate(members):
                found[member] = {name: value[row] for name, value in out.items()}
    answers = task.answers(rows, features[1], found, config)
    return task.scores(rows, answers, config), seconds


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    task = TASKS[options.task](
        Settings((options.data,), options.columns, options.problem_type, options.max_length, options.stride)
    )
    training, test = task.read(options.data, "--data", "train"), task.read(options.test_data, "--test-data", "test")
    tokenizer = BertTokenizer.from_pretrained(options.model)
    start = BertConfig.from_json(read_config(options.model))
    config = dataclasses.replace(start, **task.labels(training, start))
    features = [task.features(rows, tokenizer, config, training=rows is training) for rows in (training, test)]
    padding = {"input_ids": tokenizer.pad_id, "token_type_ids": 0, "attention_mask": 0, "tags": NO_LABEL}
    # A run of hours that was stopped goes on behind the last seed that it wrote.
    known = json.loads(options.out.read_text()) if options.out.exists() else {"seeds": {}}
    if known["seeds"] and known["command"] != about()["command"]:
        sys.exit(f"--out {options.out} is of another command: {known['command']}")
    seeds = known["seeds"]
    for seed in range(len(seeds), options.seeds):
        scores, seconds = run_seed(options, seed, task, config, test, features, padding)
        seeds[str(seed)] = {**scores, "seconds": seconds}
        options.out.write_text(json.dumps(result_of(seeds), indent=1) + "\n")
    print(json.dumps({name: result_of(seeds)[name] for name in ("mean", "standard_deviation")}, indent=1))


def result_of(seeds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The record, of as many seeds as there are."""
    columns = {name: [row[name] for row in seeds.values()] for name in seeds["0"]}
    return {
        **about("torch", "transformers"),
        "seeds": seeds,
        "mean": {name: float(np.mean(column)) for name, column in columns.items()},
        "standard_deviation": {
            name: float(np.std(column, ddof=1)) if len(column) > 1 else None for name, column in columns.items()
        },
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
