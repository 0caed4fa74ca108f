"""Classes, several classes and numbers: what is read, learned, answered and scored."""

import importlib
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import tensorflow_datasets as tfds

from bert_jax.heads import LogitsOutput
from tests.train.stored import store, write
from tests.train.tasks.tiny import CONFIG, batch_of, ids, log_softmax, refusal, settings, tokens
from train.data.requests import Request
from train.tasks import TASKS
from train.tasks.classification import Labelled

KINDS = ("single-label", "multi-label", "regression")


def task(*data, **options):
    return TASKS["classification"](settings(*data, **options))


def rows(*labels, text="a b"):
    return [Labelled(f"--data: a.tsv:{line}", text, None, label) for line, label in enumerate(labels, 2)]


# --- what is read ------------------------------------------------------------------------------------------------

FORMS = {
    "a.tsv": "text\tlabel\na b\tyes\nc\t7\n",
    "a.csv.gz": 'label,text\nyes,"a b"\n7,c\n',
    "a.jsonl": '{"text": "a b", "label": "yes"}\n{"text": "c", "label": 7}\n',
    "a.parquet": {"text": ["a b", "c"], "label": ["yes", "7"]},
}


@pytest.mark.parametrize("name", FORMS)
def test_files_of_every_form(name, tmp_path):
    path = write(tmp_path / name, FORMS[name])
    read = task(path).read(path, "--data", "train")
    assert [row[1:] for row in read] == [("a b", None, "yes"), ("c", None, "7")]
    assert read[1].place == f"--data: {path}:" + (" row 1" if "parquet" in name else "2" if "jsonl" in name else "3")


def test_columns_and_pairs(tmp_path):
    path = write(tmp_path / "a.tsv", "one\ttwo\tclass\na\tb\tyes\n")
    read = task(path, text="one", pair="two", label="class").read(path, "--eval.data", "train")
    assert read == [Labelled(f"--eval.data: {path}:2", "a", "b", "yes")]


def test_several_labels_and_numbers(tmp_path):
    several = write(tmp_path / "a.jsonl", "\n".join(
        json.dumps({"text": "a", "label": label})
        for label in ("x|y", " y | x |", "", ["y", "x", "y"], ["z", " "], None)
    ))  # fmt: skip
    found = [row.label for row in task(problem_type="multi-label").read(several, "--data", "train")]
    assert found == [("x", "y"), ("y", "x"), (), ("y", "x"), ("z",), None]
    numbers = write(tmp_path / "a.csv", "text,label\na,3.5\na,-1e2\n")
    read = task(problem_type="regression").read(numbers, "--data", "train")
    assert [row.label for row in read] == [3.5, -100.0]


GLUE = {
    "mrpc": ("sentence1", "sentence2", 1, "equivalent"),
    "sst2": ("sentence", None, 0, "negative"),
    "stsb": ("sentence1", "sentence2", 2.5, 2.5),
}


@pytest.mark.parametrize("split", ["", ":train"])
@pytest.mark.parametrize("name", GLUE)
def test_glue_by_name(name, split, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    importlib.import_module("tensorflow_datasets.text.glue")  # which registers the builder
    first, second, label, said = GLUE[name]
    row = {first: "a b", "label": label, "idx": 0} | ({second: "c"} if second else {})
    store(tfds.builder(f"glue/{name}", data_dir=tmp_path, file_format="array_record"), {"train": [row]})
    entry = f"tfds:glue/{name}{split}"
    made = task(entry)
    (read,) = made.read(entry, "--data", "train")
    assert read[1:] == ("a b", "c" if second else None, said)
    assert made.problem_type == ("regression" if name == "stsb" else "single-label")
    assert made.best == {"mrpc": ("eval/f1", "max"), "sst2": ("eval/accuracy", "max")}.get(
        name, ("eval/spearman", "max")
    )


def test_glue_keeps_its_columns_unless_told_otherwise():
    assert task("tfds:glue/qqp").columns == {"text": "question1", "pair": "question2", "label": "label"}
    assert task("tfds:glue/qqp", text="idx").columns["text"] == "idx"
    assert task("tfds:glue/mnli").validation == ("validation_matched", "validation_mismatched")
    # Beside other data, its columns are those of every table.
    assert task("tfds:glue/qqp", "a.tsv").columns == {"text": "text", "label": "label"}


def test_a_problem_type_that_glue_does_not_have_is_refused():
    message = refusal(task, "tfds:glue/sst2", problem_type="regression")
    assert message.startswith("--problem-type regression: tfds:glue/sst2 is single-label")
    assert task("tfds:glue/stsb", problem_type="regression").problem_type == "regression"


def test_embedded_rows():
    request = Request("wake me at 7", "set_alarm", ["wake", "me", "at", "7"], ["O", "O", "O", "B-time"])
    assert task().embedded([request], "here") == [Labelled("here", "wake me at 7", None, "set_alarm")]
    assert task().texts([Labelled("", "a", "b", None), Labelled("", "c", None, None)]) == ["a", "b", "c"]


# --- labels ------------------------------------------------------------------------------------------------------


def test_the_order_of_labels():
    made = task()
    assert made.labels(rows("b", "10", "9", "a"), None) == {
        "id2label": ("9", "10", "a", "b"),
        "problem_type": "single_label_classification",
    }
    huge = "9" * 5000  # more digits than Python makes a number of
    assert made.labels(rows("a", huge, "10"), None)["id2label"] == ("10", huge, "a")
    start = SimpleNamespace(id2label=("b", "9", "a", "10"))
    assert made.labels(rows("b", "10", "9", "a"), start)["id2label"] == ("b", "9", "a", "10")
    assert made.labels(rows("b", "a"), start)["id2label"] == ("a", "b")


def test_labels_of_the_other_kinds():
    several = task(problem_type="multi-label").labels(rows(("y",), (), ("x", "y")), None)
    assert several == {"id2label": ("x", "y"), "problem_type": "multi_label_classification"}
    assert task(problem_type="multi-label").labels(rows(("y",), ()), None)["id2label"] == ("y",)
    number = task(problem_type="regression").labels(rows(1.0, 2.0), None)
    assert number == {"id2label": ("LABEL_0",), "problem_type": "regression"}


def test_the_class_that_f1_is_of_is_that_of_glue():
    """By name "equivalent" would come first, and F1 would be that of what is not equivalent."""
    made, found = task("tfds:glue/mrpc"), rows("equivalent", "not_equivalent")
    config = SimpleNamespace(**made.labels(found, None))
    assert config.id2label == ("not_equivalent", "equivalent")
    for order in (config.id2label, config.id2label[::-1]):  # the latter: a model that had them the other way round
        config = SimpleNamespace(**made.labels(found, SimpleNamespace(id2label=order)))
        assert config.id2label == order
        right = rows("equivalent", "equivalent", "equivalent", "not_equivalent", "not_equivalent")
        answers = [{"predicted": name} for name in ("equivalent", "equivalent", "not_equivalent", *["equivalent"] * 2)]
        scores = made.scores(right, answers, config)
        assert scores["eval/f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))


@pytest.mark.parametrize(
    ("kind", "labels", "said"),
    [
        ("single-label", ["a", None], ":3: there is no label, which training needs"),
        ("single-label", ["a", "a"], ":2: all labels are 'a'; two classes are needed"),
        ("multi-label", [(), ()], ":2: no row has a label"),
        ("regression", [2.0, 2.0], ":2: all numbers are 2.0; numbers that differ are needed"),
    ],
)
def test_labels_that_teach_nothing(kind, labels, said):
    assert refusal(task(problem_type=kind).labels, rows(*labels), None).startswith(f"--data: a.tsv{said}")


@pytest.mark.parametrize(
    ("kind", "label", "said"),
    [
        ("single-label", "a\tb", "the field of --columns.label must be a name of one line, not 'a\\tb'"),
        ("single-label", 1.5, "must be text that is not blank, not 1.5"),
        ("single-label", " ", "must be text that is not blank"),
        ("multi-label", ["a\x01"], "must be a name of one line, not 'a\\x01'"),
        ("multi-label", 3, "must be a list of strings, or a string with | between them, not 3"),
        ("regression", "many", "must be a finite number, not 'many'"),
    ],
)
def test_labels_that_are_none_are_named_with_their_line(kind, label, said, tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a", "label": label}))
    message = refusal(task(problem_type=kind).read, path, "--data", "train")
    assert message.startswith(f"--data: {path}:1: ") and said in message


def test_columns_that_the_task_needs_or_does_not_have():
    for role in ("text", "label"):
        assert refusal(task, **{role: ""}).startswith(f"--columns.{role} '': the task needs it")
    assert refusal(task, tokens="words").startswith(
        "--columns.tokens 'words': the task reads --columns.text, --columns.pair, --columns.label; leave it out"
    )


# --- features ----------------------------------------------------------------------------------------------------


def labelled(kind, names=("x", "y", "z")):
    return SimpleNamespace(id2label=names if kind != "regression" else ("LABEL_0",))


def test_features_of_texts_and_pairs(tokenizer):
    made = task(max_length=6)
    features = made.features(rows("y", "x", text="a bx c d e f"), tokenizer, labelled("single-label"), training=True)
    assert [tokens(example) for example in features.examples] == ["[CLS] a b ##x c [SEP]"] * 2
    assert features.examples[0]["input_ids"].tolist() == ids("[CLS] a b ##x c [SEP]")
    assert [int(example["labels"]) for example in features.examples] == [1, 0]
    assert features.left_out == {"texts cut to --max-length": 2}
    pair = [Labelled("", "a b", "c", "x")]
    (example,) = made.features(pair, tokenizer, labelled("single-label"), training=True).examples
    assert tokens(example) == "[CLS] a b [SEP] c [SEP]" and example["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert example["attention_mask"].tolist() == [1] * 6 and example["labels"].dtype == np.int32


def test_targets_of_the_other_kinds(tokenizer):
    several = task(problem_type="multi-label")
    features = several.features(rows(("z", "x"), ()), tokenizer, labelled("multi-label"), training=True)
    assert [example["labels"].tolist() for example in features.examples] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    number = task(problem_type="regression")
    (example,) = number.features(rows(2.5), tokenizer, labelled("regression"), training=True).examples
    assert example["labels"] == np.float32(2.5) and example["labels"].dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_labels_that_training_lacks(kind, tokenizer):
    made = task(problem_type=kind)
    for label, said in (
        (None, "there is no label, which scores need"),
        ("w" * 200, " is none that training has: x, y, z"),
    ):
        if label and kind == "regression":
            continue
        label = (label,) if label and kind == "multi-label" else label
        message = refusal(made.features, rows(label), tokenizer, labelled(kind), training=False)
        assert message.startswith("--data: a.tsv:2: ") and said in message
    many = tuple(f"class {number}" for number in range(5000))
    if kind == "single-label":
        message = refusal(made.features, rows("w"), tokenizer, labelled(kind, many), training=False)
        assert "the label 'w' is none that training has: class 0, class 1" in message


# --- losses ------------------------------------------------------------------------------------------------------


def oracle(kind, logits, labels):
    """The loss of each row, in float64."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if kind == "single-label":
        return -log_softmax(logits)[np.arange(len(labels)), labels]
    if kind == "regression":
        return (logits[:, 0] - labels) ** 2
    share = 1 / (1 + np.exp(-logits))
    return -(labels * np.log(share) + (1 - labels) * np.log(1 - share)).mean(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_sums_over_the_rows_that_count(kind, tokenizer):
    made, config = task(problem_type=kind), labelled(kind)
    labels = {
        "single-label": "xyzx",
        "multi-label": [("x",), (), ("y", "z"), ("z",)],
        "regression": [0.5, 2.0, -1.0, 3.0],
    }
    features = made.features(rows(*labels[kind]), tokenizer, config, training=True)
    batch = batch_of(features.examples, filled=2)
    logits = np.random.default_rng(0).normal(0, 2, (6, len(config.id2label))).astype(np.float32)
    sums = made.sums(LogitsOutput(jnp.asarray(logits)), batch)
    np.testing.assert_allclose(sums["loss_per_row"], oracle(kind, logits[:4], batch["labels"][:4]).sum(), rtol=1e-5)
    assert made.weights(batch) == {"loss_per_row": 4.0}
    shares = made.outputs(LogitsOutput(jnp.asarray(logits)))["scores"]
    expected = {
        "single-label": np.exp(log_softmax(logits)),
        "multi-label": 1 / (1 + np.exp(-logits)),
        "regression": logits,
    }
    np.testing.assert_allclose(shares, expected[kind], rtol=1e-5)


# --- answers and scores ------------------------------------------------------------------------------------------


def answered(made, right, scores, config):
    outputs = [{"scores": np.array(each, np.float32)} for each in scores]
    return made.answers(right, None, outputs, config)


def test_answers_and_scores_of_classes():
    made, config, right = task(), labelled("single-label"), rows("x", "y", "z", "x")
    shares = [[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [0.0, 0.25, 0.75], [0.25, 0.5, 0.25]]
    answers = answered(made, right, shares, config)
    assert answers[1] == {
        "text": "a b", "label": "y", "predicted": "x", "probabilities": {"x": 0.75, "y": 0.25, "z": 0.0},
    }  # fmt: skip
    assert "pair" in answered(made, [Labelled("", "a", "b", "x")], [[1, 0, 0]], config)[0]
    predicted, expected = ["x", "x", "z", "y"], ["x", "y", "z", "x"]
    assert made.scores(right, answers, config) == pytest.approx(
        {
            "eval/accuracy": 0.5,
            "eval/f1": sklearn.metrics.f1_score(expected, predicted, average="macro"),
            "eval/matthews": sklearn.metrics.matthews_corrcoef(expected, predicted),
        }
    )
    names, counts = made.confusion(right, answers, config)
    assert names == ["x", "y", "z"] and counts.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_f1_of_two_classes_is_that_of_the_second_one():
    made, config, right = task(), labelled("single-label", ("0", "1")), rows("0", "1", "1", "1")
    answers = answered(made, right, [[0, 1], [0, 1], [0, 1], [1, 0]], config)
    scores = made.scores(right, answers, config)
    assert scores["eval/f1"] == pytest.approx(4 / 6) and scores["eval/f1_macro"] == pytest.approx(2 / 6)


def test_answers_and_scores_of_several_classes():
    made, config, right = task(problem_type="multi-label"), labelled("multi-label"), rows(("x",), (), ("z", "y"))
    answers = answered(made, right, [[0.75, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.75, 0.25]], config)
    assert [answer["predicted"] for answer in answers] == [["x"], [], ["y"]]
    assert made.scores(right, answers, config) == pytest.approx({"eval/f1": 0.8, "eval/exact_match": 2 / 3})
    assert made.confusion(right, answers, config) is None and made.best == ("eval/f1", "max")


def test_answers_and_scores_of_numbers():
    made, config, right = task(problem_type="regression"), labelled("regression"), rows(1.0, 2.0, 4.0)
    answers = answered(made, right, [[0.5], [2.0], [0.75]], config)
    assert answers[0] == {"text": "a b", "label": 1.0, "predicted": 0.5}
    scores = made.scores(right, answers, config)
    assert scores["eval/spearman"] == pytest.approx(0.5)
    assert scores["eval/pearson"] == pytest.approx(np.corrcoef([0.5, 2.0, 0.75], [1, 2, 4])[0, 1])
    same = made.scores(right, answered(made, right, [[1], [1], [1]], config), config)
    assert same == {"eval/pearson": 0.0, "eval/spearman": 0.0}
    assert made.confusion(right, answers, config) is None and made.best == ("eval/spearman", "max")


def test_the_configuration_takes_every_kind_of_label():
    import dataclasses

    for kind, labels in zip(KINDS, (["x", "y"], [("x",)], [1.0, 2.0]), strict=True):
        made = dataclasses.replace(CONFIG, **task(problem_type=kind).labels(rows(*labels), None))
        assert made.problem_type is not None
