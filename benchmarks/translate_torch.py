"""The same translation model trained by transformers' Trainer: the peer of `python -m train translate`.

    python benchmarks/translate_torch.py --model FOLDER --data train.tsv --test-data test.tsv --steps 6000 \\
        --pairs 150 --learning-rate 1e-3 --warmup-steps 1000 --out result.json

FOLDER is the trained model of a run as `transformer_jax.save_marian` writes it: its vocabulary and its sizes are taken,
its weights are not. The model begins as transformers draws it and is trained by Seq2SeqTrainer: Adam, inverse square
root of the step, label smoothing, as many pairs an update as a batch of ours holds on average, grouped by their length.
The last checkpoints are averaged and decoded by this library, so that both models are searched and scored alike.
Needs `pip install -e '.[parity]' accelerate`.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import tyro
from record import about

from train.data.parallel import read_pairs
from train.metrics import corpus_scores
from transformer_jax import Translator


@dataclasses.dataclass(frozen=True)
class Options:
    model: Path
    data: str
    test_data: str
    out: Path
    steps: int
    pairs: int
    """Pairs of an update."""
    learning_rate: float
    warmup_steps: int
    label_smoothing: float = 0.1
    average: int = 5
    """Checkpoints that are averaged."""
    every: int = 100
    """Steps between them."""
    max_length: int = 128
    """Longer pairs are left out."""
    seed: int = 0
    threads: int = 2


class LastStates(transformers.TrainerCallback):
    """Adds up the parameters of the checkpoints that are averaged."""

    def __init__(self, options: Options) -> None:
        last = options.steps // options.every * options.every
        self.steps = {last - options.every * back for back in range(options.average)}
        self.mean: dict[str, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **rest: Any) -> None:
        if state.global_step in self.steps:
            for name, value in model.state_dict().items():
                self.mean[name] = self.mean.get(name, 0) + value.double() / len(self.steps)


def encoded(tokenizer: Any, options: Options) -> list[dict[str, list[int]]]:
    """Ids of the pairs that are short enough."""
    sources, targets = zip(*read_pairs([options.data]), strict=True)
    ids = zip(tokenizer(list(sources))["input_ids"], tokenizer(text_target=list(targets))["input_ids"], strict=True)
    return [{"input_ids": s, "labels": t} for s, t in ids if max(len(s), len(t)) <= options.max_length]


def train(options: Options, folder: Path) -> tuple[Any, float]:
    """(the averaged model, seconds of training)."""
    tokenizer = transformers.MarianTokenizer.from_pretrained(options.model)
    model = transformers.MarianMTModel(transformers.MarianConfig.from_pretrained(options.model))
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(folder), max_steps=options.steps, per_device_train_batch_size=options.pairs,
        train_sampling_strategy="group_by_length", learning_rate=options.learning_rate,
        lr_scheduler_type="inverse_sqrt", warmup_steps=options.warmup_steps, adam_beta2=0.98, adam_epsilon=1e-9,
        weight_decay=0.0, max_grad_norm=1.0, label_smoothing_factor=options.label_smoothing, seed=options.seed,
        save_strategy="no", report_to=[], logging_steps=100, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    states = LastStates(options)
    trainer = transformers.Seq2SeqTrainer(
        model, arguments, train_dataset=encoded(tokenizer, options), callbacks=[states],
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
    )  # fmt: skip
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    model.load_state_dict({name: value.float() for name, value in states.mean.items()})
    return model.eval(), seconds


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    transformers.set_seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, seconds = train(options, folder / "trainer")
        shutil.copytree(options.model, folder / "model")
        model.save_pretrained(folder / "trained")
        # Its configuration files say what transformers makes up for a fresh model, an end of its own among it.
        shutil.copy(folder / "trained" / "model.safetensors", folder / "model")
        translator = Translator.from_pretrained(
            folder / "model", num_beams=4, length_penalty=0.6, preset="paper", early_stopping=False,
            max_length=options.max_length, max_output_length=None,
        )  # fmt: skip
    sources, references = zip(*read_pairs([options.test_data]), strict=True)
    result = {
        **about("torch", "transformers"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": seconds,
        **corpus_scores(translator(sources), references),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
