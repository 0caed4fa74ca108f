"""Of every task: what a batch is padded to, and rows that only fill it up, change neither losses nor answers."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.bert_jax.folders import random_params
from tests.train.tasks.tiny import CONFIG, batch_of, settings
from train.data.conll import Tagged
from train.data.squad import Answer, Question
from train.tasks import TASKS, TaskObjective
from train.tasks.classification import Labelled
from train.tasks.joint import Joined
from train.tasks.multiple_choice import Choice
from train.tasks.similarity import Similar

TEXTS = ("a", "b cx d", "e f g h i")
TAGS = [["B-p"], ["O", "B-p", "I-p"], ["O"] * 5]
ROWS = {
    "classification": [Labelled("", text, "j", label) for text, label in zip(TEXTS, "xyx", strict=True)],
    "similarity": [Similar("", text, "j", score) for text, score in zip(TEXTS, (0.0, 2.0, 1.0), strict=True)],
    "tagging": [Tagged("", text.split(), tags) for text, tags in zip(TEXTS, TAGS, strict=True)],
    "question-answering": [Question("", "0", "j ?", text, [Answer(text[0], 0)], False) for text in TEXTS],
    "multiple-choice": [
        Choice("", "j", "", (text, "a b"), label) for text, label in zip(TEXTS, (0, 1, 1), strict=True)
    ],
    "joint": [Joined("", t.split(), tags, i) for t, tags, i in zip(TEXTS, TAGS, "xyx", strict=True)],
}
KINDS = [(name, {}) for name in ROWS] + [("similarity", {"label": ""})]


@pytest.mark.parametrize(("name", "columns"), KINDS, ids=[name + "-pairs" * bool(columns) for name, columns in KINDS])
def test_length_and_filling_change_nothing(name, columns, tokenizer):
    made, rows = TASKS[name](settings(**columns)), ROWS[name]
    config = dataclasses.replace(CONFIG, **made.labels(rows, None))
    objective = TaskObjective(made.head(config), made)
    params = random_params(objective.model)
    examples = made.features(rows, tokenizer, config, training=True).examples

    @jax.jit
    def losses_and_outputs(params, batch):
        sums, outputs = objective.sums(params, batch, None), made.outputs(objective.apply(params, batch))
        return sums, made.weights(batch), outputs

    sums, weights, outputs = losses_and_outputs(params, batch_of(examples))
    assert {*sums} == {*weights} == {*made.terms} and all(weight > 0 for weight in weights.values())
    other_sums, other_weights, other_outputs = losses_and_outputs(params, batch_of(examples, length=16, filled=2))
    for term in made.terms:
        np.testing.assert_allclose(other_sums[term], sums[term], rtol=1e-5)
        assert other_weights[term] == weights[term]
    for output, values in outputs.items():
        for row, example in enumerate(examples):
            there = slice(example["input_ids"].shape[-1] if output in ("tags", "start", "end") else None)
            np.testing.assert_allclose(other_outputs[output][row][there], values[row][there], atol=1e-5)
    _, said = objective.prepare(batch_of(examples), None)
    assert said["tokens"] == sum(example["attention_mask"].sum() for example in examples)
