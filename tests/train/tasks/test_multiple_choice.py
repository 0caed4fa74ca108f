"""The right one of several endings."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.heads import LogitsOutput
from tests.train.stored import write
from tests.train.tasks.tiny import CONFIG, batch_of, log_softmax, refusal, settings, tokens
from train.data.requests import requests
from train.tasks import TASKS
from train.tasks.multiple_choice import Choice

TWO = ("one", "two")


def task(**options):
    return TASKS["multiple-choice"](settings(**options))


def choice(text, beginning, *endings, label=0):
    return Choice("--data: a.tsv:2", text, beginning, endings, label)


SWAG = "sent1,sent2,ending0,ending1,ending2,ending3,label\na b,c,d,e,f,g,2\n"
FORMS = {
    "a.csv": SWAG,
    "a.tsv.gz": SWAG.replace(",", "\t"),
    "a.jsonl": '{"sent1": "a b", "sent2": "c", "label": "2", '
    '"ending0": "d", "ending1": "e", "ending2": "f", "ending3": "g"}',
    "a.parquet": {"sent1": ["a b"], "sent2": ["c"], **{f"ending{i}": [c] for i, c in enumerate("defg")}, "label": [2]},
}


@pytest.mark.parametrize("name", FORMS)
def test_files_of_every_form(name, tmp_path):
    (row,) = task().read(write(tmp_path / name, FORMS[name]), "--data", "train")
    assert row[1:] == ("a b", "c", ("d", "e", "f", "g"), 2)


def test_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"t": "a", "p": null, "one": "b", "two": "c", "l": "1"}')
    made = task(text="t", pair="p", choices=TWO, label="l")
    assert made.read(path, "--data", "train") == [Choice(f"--data: {path}:1", "a", "", ("b", "c"), 1)]
    made = task(text="t", pair="", choices=TWO, label="l")
    assert made.read(path, "--data", "train")[0].beginning == ""
    assert refusal(task(choices=("one",)).read, path, "--data", "train") == (
        "--columns.choices ['one']: name the columns of two choices or more"
    )
    assert refusal(task, label="") == "--columns.label '': the task needs it; name a column, or leave it out"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": 2}, "the label 2 must be a number from 0 to 1"),
        ({"label": 0.5}, "the label 0.5 must be a number from 0 to 1"),
        ({"label": None}, "the label None must be a number from 0 to 1"),
        ({"label": "b"}, "the field of --columns.label must be a finite number, not 'b'"),
        ({"two": ""}, "the field of --columns.choices.1 must be text that is not blank"),
        ({"sent2": 3}, "the field of --columns.pair must be text that is not blank, not 3"),
    ],
)
def test_rows_that_are_none_are_named_with_their_line(changes, said, tmp_path):
    row = {"sent1": "a", "sent2": " ", "one": "b", "two": "c", "label": 0}
    path = write(tmp_path / "a.jsonl", json.dumps(row) + "\n" + json.dumps(row | changes))
    assert refusal(task(choices=TWO).read, path, "--data", "train").startswith(f"--data: {path}:2: {said}")


def test_embedded_choices():
    rows = task().embedded(requests()[1][:9], "here")
    assert len(rows) == 9 and all(len(row.choices) == 4 and row.label in range(4) for row in rows)
    assert task().texts([choice("a", "b", "c", "d")]) == ["a", "b", "c", "d"]
    assert task().labels(rows, None) == {}


def test_each_choice_is_a_row_behind_what_stands_in_front(tokenizer):
    rows = [choice("a bx", "c", "d e f", "g", label=1), choice("a", "", "b", "c")]
    found = task(max_length=8).features(rows, tokenizer, CONFIG, training=True)
    first, second = found.examples
    assert tokens(first) == ["[CLS] a b [SEP] c d e [SEP]", "[CLS] a b ##x [SEP] c g [SEP]"]
    assert first["token_type_ids"].tolist() == [[0] * 4 + [1] * 4, [0] * 5 + [1] * 3]
    assert tokens(second) == ["[CLS] a [SEP] b [SEP]", "[CLS] a [SEP] c [SEP]"]
    assert found.left_out == {"choices cut to --max-length": 1}
    assert [int(example["labels"]) for example in found.examples] == [1, 0]
    (uneven,) = task().features([choice("a", "", "b", "b c d")], tokenizer, CONFIG, training=True).examples
    assert uneven["attention_mask"].tolist() == [[1] * 5 + [0] * 2, [1] * 7]
    assert batch_of(found.examples, length=9)["input_ids"].shape == (2, 2, 9)


def test_losses_answers_and_scores(tokenizer):
    rows = [choice("a", "", "b", "c", label=1), choice("a", "", "b", "c"), choice("a", "", "b", "c")]
    batch = batch_of(task().features(rows, tokenizer, CONFIG, training=True).examples, filled=2)
    logits = np.random.default_rng(0).normal(0, 2, (5, 2)).astype(np.float32)
    expected = -log_softmax(logits)[[0, 1, 2], [1, 0, 0]].sum()
    np.testing.assert_allclose(
        task().sums(LogitsOutput(jnp.asarray(logits)), batch)["loss_per_row"], expected, rtol=1e-5
    )
    assert task().weights(batch) == {"loss_per_row": 3.0}
    shares = task().outputs(LogitsOutput(jnp.asarray(logits)))["scores"]
    np.testing.assert_allclose(shares, np.exp(log_softmax(logits)), rtol=1e-5)

    outputs = [{"scores": np.array(each, np.float32)} for each in ([0.25, 0.75], [0.25, 0.75], [0.75, 0.25])]
    answers = task().answers(rows, None, outputs, CONFIG)
    assert [answer["predicted"] for answer in answers] == [1, 1, 0]
    assert answers[0]["probabilities"] == [0.25, 0.75] and json.dumps(answers)
    assert task().scores(rows, answers, CONFIG) == {"eval/accuracy": pytest.approx(2 / 3)}
    assert task().confusion(rows, answers, CONFIG) is None
