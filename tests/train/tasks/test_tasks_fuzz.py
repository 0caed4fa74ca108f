"""Rows of anything through every task: refused in one line that names the file, or learned, answered and scored."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import check_line, fuzz
from tests.train.tasks.tiny import CONFIG, settings
from train.errors import InputError
from train.tasks import TASKS

WORDS = st.sampled_from(
    [
        *[
            "a",
            "b",
            "ax",
            "zz",
            "a b c d e f g h i j",
            "",
            " ",
            "a|b",
            "|",
            "O",
            "B-p",
            "I-p",
            "B-",
            "B-\x01",
            "B-\u200b",
        ],
        *[
            "0",
            "1",
            "-1",
            "1e39",
            "nan",
            "9" * 5000,
            "٣",
            "\u200b",
            "\x7f",
            "a\nb",
            "\u2028",
            "é",
            "天",
            "w" * 120,
            "\ud800",
        ],
    ]
)
VALUES = WORDS | WORDS | st.none() | st.booleans() | st.integers(-1, 4) | st.floats() | st.lists(WORDS, max_size=4)
TEXTS = st.sampled_from(["a", "b c", "ax ? d", "a b c d e f g h i j", "\u200b", "天"])
CLASSES = st.sampled_from(["x", "y", "10", "9"])
SENTENCES = st.lists(st.tuples(WORDS, st.sampled_from(["O", "B-p", "B-q"])), min_size=1, max_size=9).map(
    lambda pairs: [pair for pair in pairs if pair[0].split() == [pair[0]] and pair[0].isprintable()] or [("a", "O")]
)
PAIRS = st.fixed_dictionaries({"sentence1": TEXTS, "sentence2": TEXTS, "score": st.integers(0, 5)})
CHOICES = st.fixed_dictionaries(
    {"sent1": TEXTS, "sent2": TEXTS, **{f"ending{i}": TEXTS for i in range(4)}, "label": st.integers(0, 3)}
)


def labelled(labels):
    return st.fixed_dictionaries({"text": TEXTS, "label": labels})


def tagged(pairs):
    return {"tokens": [token for token, _ in pairs], "tags": [tag for _, tag in pairs]}


KINDS = {
    "single-label": ("classification", {}, labelled(CLASSES)),
    "multi-label": ("classification", {"problem_type": "multi-label"}, labelled(st.lists(CLASSES))),
    "regression": ("classification", {"problem_type": "regression"}, labelled(st.floats(-1e9, 1e9))),
    "scores": ("similarity", {}, PAIRS),
    "pairs": ("similarity", {"label": ""}, PAIRS),
    "tagging": ("tagging", {}, SENTENCES.map(tagged)),
    "joint": ("joint", {}, st.builds(lambda pairs, intent: tagged(pairs) | {"intent": intent}, SENTENCES, CLASSES)),
    "choices": ("multiple-choice", {}, CHOICES),
}


@st.composite
def edited(draw, rows):
    """Rows that are right, mostly, or with a few fields that hold anything."""
    rows = [dict(row) for row in draw(st.lists(rows, min_size=1, max_size=7))]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        row = draw(st.sampled_from(rows))
        row[draw(st.sampled_from(sorted(row)))] = draw(VALUES)
    return rows


def outputs_of(task, config, examples, rng):
    """What a model could give for each example."""
    found = []
    for example in examples:
        length, labels = example["input_ids"].shape[-1] + 2, len(config.id2label)
        tags = rng.integers(0, len(config.slot_labels) or labels, length)
        scores = rng.dirichlet(np.ones(4 if task == "multiple-choice" else labels)).astype(np.float32)
        intent, vectors = rng.dirichlet(np.ones(labels)), rng.normal(size=(2, 3)).astype(np.float32)
        found.append({"scores": scores, "tags": tags, "intent": intent, "vectors": vectors})
    return found


@pytest.mark.parametrize("kind", KINDS)
@fuzz
@given(data=st.data())
def test_refused_or_scored(kind, tmp_path, tokenizer, data):
    name, options, rows = KINDS[kind]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, data.draw(edited(rows)))))
    made = TASKS[name](settings(max_length=data.draw(st.sampled_from([5, 8, 64])), **options))
    try:
        read = made.read(str(path), "--data", "train")
        half = read[: data.draw(st.integers(1, len(read)))]
        config = dataclasses.replace(CONFIG, **made.labels(half, None))
        made.features(half, tokenizer, config, training=True)
        features = made.features(read, tokenizer, config, training=False)
    except InputError as error:
        check_line(str(error), f"--data: {path}:")
        return
    outputs = outputs_of(name, config, features.examples, np.random.default_rng(0))
    answers = made.answers(read, features, outputs, config)
    assert len(answers) == len(read) == len(features.examples) and json.dumps(answers, allow_nan=False)
    scores = made.scores(read, answers, config)
    assert made.best[0] in scores and all(name.startswith("eval/") and math.isfinite(x) for name, x in scores.items())
    found = made.confusion(read, answers, config)
    if found is not None:
        names, counts = found
        assert counts.shape == (len(names), len(names)) and len({*names}) == len(names)
        assert counts.sum() == (sum(len(row.tokens) for row in read) if name == "tagging" else len(read))
