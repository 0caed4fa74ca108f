"""Answers as spans of a context: windows, targets, losses, the best spans, and questions without an answer."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.heads import QuestionAnsweringOutput
from tests.train.stored import write
from tests.train.tasks.tiny import CONFIG, batch_of, log_softmax, refusal, settings, tokens
from train.data.requests import requests
from train.data.squad import Answer, Question
from train.tasks import TASKS


def task(**options):
    return TASKS["question-answering"](settings(**options))


def question(context, *answers, text="j ?", number=0, impossible=False):
    """Each answer is (text, first character)."""
    given = [Answer(*answer) for answer in answers]
    return Question(
        f"--data: a.json: data[0].paragraphs[0].qas[{number}]", str(number), text, context, given, impossible
    )


def squad(*questions):
    """The JSON of SQuAD 2.0."""
    entries = [
        {
            "id": q.id, "question": q.question, "is_impossible": q.impossible,
            "answers": [{"text": answer.text, "answer_start": answer.start} for answer in q.answers],
        }
        for q in questions
    ]  # fmt: skip
    paragraphs = [{"context": q.context, "qas": [entry]} for q, entry in zip(questions, entries, strict=True)]
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_squad(name, tmp_path):
    asked = [question("a b c", ("b", 2)), question("d", impossible=True, number=1)]
    path = write(tmp_path / name, squad(*asked))
    read = task().read(path, "--data", "train")
    assert [row[1:] for row in read] == [row[1:] for row in asked]
    assert task().texts(read) == ["j ?", "a b c", "j ?", "d"]


def test_embedded_questions():
    rows = task().embedded(requests()[1][:20], "here")
    assert len(rows) == 20 and any(row.impossible for row in rows)
    for row in rows:
        assert all(row.context[a.start : a.start + len(a.text)] == a.text for a in row.answers)


def test_no_columns():
    message = refusal(task, text="question")
    assert message == "--columns.text 'question': the task reads no columns; leave it out"


# --- features ----------------------------------------------------------------------------------------------------


def features(tokenizer, *rows, training=True, **options):
    return task(**options).features(rows, tokenizer, CONFIG, training=training)


def test_where_an_answer_begins_and_ends(tokenizer):
    found = features(tokenizer, question("a bx cx d", ("bx cx", 2)), question("a bx c", ("x", 3)))
    first, second = found.examples
    assert tokens(first) == "[CLS] j ? [SEP] a b ##x c ##x d [SEP]"
    assert (int(first["start"]), int(first["end"])) == (5, 8)
    assert first["token_type_ids"].tolist() == [0] * 4 + [1] * 7
    assert (int(second["start"]), int(second["end"])) == (6, 6)  # the piece ##x alone
    assert [source.question for source in found.sources] == [0, 1]


def test_an_answer_that_begins_within_a_token_takes_the_whole_token(tokenizer):
    (example,) = features(tokenizer, question("a zzz c", ("zz", 3))).examples
    assert tokens(example) == "[CLS] j ? [SEP] a [UNK] c [SEP]" and (example["start"], example["end"]) == (5, 5)


def test_blanks_around_an_answer_are_none_of_it(tokenizer):
    (example,) = features(tokenizer, question("a b c d", (" b c ", 1))).examples
    assert (int(example["start"]), int(example["end"])) == (5, 6)


def test_of_several_answers_the_first_one_is_learned(tokenizer):
    (example,) = features(tokenizer, question("a b a", ("a", 4), ("a", 0))).examples
    assert (int(example["start"]), int(example["end"])) == (6, 6)


def test_windows_learn_the_answer_or_that_there_is_none(tokenizer):
    row = question("a b c d e f g h", ("d e", 6))  # the tokens 3 and 4 of 8
    found = features(tokenizer, row, question("a", impossible=True, number=1), max_length=9, stride=1)
    assert [tokens(example) for example in found.examples] == [
        "[CLS] j ? [SEP] a b c d [SEP]",
        "[CLS] j ? [SEP] d e f g [SEP]",
        "[CLS] j ? [SEP] g h [SEP]",
        "[CLS] j ? [SEP] a [SEP]",
    ]
    ends = [(int(example["start"]), int(example["end"])) for example in found.examples]
    assert ends == [(0, 0), (4, 5), (0, 0), (0, 0)]
    assert [source.question for source in found.sources] == [0, 0, 0, 1]
    assert list(found.left_out.values()) == [2]
    held_out = features(tokenizer, row, training=False, max_length=9, stride=1)  # other windows answer for these
    assert list(held_out.left_out.values()) == [0]


def test_an_answer_that_no_window_holds(tokenizer):
    found = features(tokenizer, question("a b c d e f g h", ("b c d e f", 2)), max_length=9, stride=1)
    assert all(not example["start"] and not example["end"] for example in found.examples)
    assert list(found.left_out.values()) == [len(found.examples)] == [3]


def test_questions_that_cannot_be_learned_from(tokenizer):
    message = refusal(features, tokenizer, question("a"))
    assert message == (
        "--data: a.json: data[0].paragraphs[0].qas[0]: there is no answer, and the question is not marked as impossible"
    )
    message = refusal(features, tokenizer, question("a b c", ("a", 0), text="j " * 12), max_length=16, stride=2)
    assert message.startswith("--data: a.json: data[0].paragraphs[0].qas[0] (--max-length, --stride): ")
    assert "max_length 16 leaves 1 tokens for the context beside the question's 12" in message


# --- losses ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_of_both_ends(tokenizer):
    rows = [question("a bx cx d", ("bx cx", 2)), question("a", impossible=True)]
    batch = batch_of(features(tokenizer, *rows).examples, length=14, filled=1)
    start, end = np.random.default_rng(0).normal(0, 2, (2, 3, 14)).astype(np.float32)
    expected = 0
    for row, (length, first, last) in enumerate([(11, 5, 8), (6, 0, 0)]):
        expected -= (log_softmax(start[row, :length])[first] + log_softmax(end[row, :length])[last]) / 2
    sums = task().sums(QuestionAnsweringOutput(jnp.asarray(start), jnp.asarray(end)), batch)
    np.testing.assert_allclose(sums["loss_per_row"], expected, rtol=1e-5)
    assert task().weights(batch) == {"loss_per_row": 2.0}


# --- answers and scores ------------------------------------------------------------------------------------------


def ends(found, *spans):
    """Outputs of the windows in which `spans`, (first position, last position, score), are the only ones that count."""
    outputs = []
    for example, (first, last, score, nothing) in zip(found.examples, spans, strict=True):
        start, end = np.full((2, len(example["input_ids"]) + 3), -9.0, np.float32)  # padded, as a batch is
        start[0], end[0] = nothing, 0
        start[first], end[last] = score, 0
        start[-1] = end[-1] = 50
        outputs.append({"start": start, "end": end})
    return outputs


def test_answers_come_from_the_best_window(tokenizer):
    row = question("a b c d e f g h", ("d e", 6))
    found = features(tokenizer, row, training=False, max_length=9, stride=1)
    outputs = ends(found, (4, 5, 1.0, 7.0), (4, 5, 3.0, 5.0), (4, 5, 2.0, 6.0))
    (answer,) = task().answers([row], found, outputs, CONFIG)
    assert answer["predicted"] == answer["best_span"] == "d e"  # no question is impossible: there is always an answer
    assert answer["no_answer_score"] == pytest.approx(5.0 - 3.0)
    assert answer["n_best"][:3] == [
        {"text": "d e", "start": 6, "end": 9, "score": 3.0},
        {"text": "g h", "start": 12, "end": 15, "score": 2.0},
        {"text": "a b", "start": 0, "end": 3, "score": 1.0},
    ]
    assert len(answer["n_best"]) == 5 and json.dumps(answer)
    assert task().scores([row], [answer], CONFIG) == {"eval/exact_match": 1.0, "eval/f1": 1.0}


def test_no_answer_where_that_scores_more(tokenizer):
    rows = [
        question("a b c", ("b", 2)),
        question("d e f", impossible=True, number=1),
        question("g h i", ("g", 0), number=2),
    ]
    found = features(tokenizer, *rows, training=False)
    outputs = ends(found, (5, 5, 3.0, 2.0), (4, 4, 3.0, 4.0), (4, 4, 3.0, 3.5))
    answers = task().answers(rows, found, outputs, CONFIG)
    assert [answer["predicted"] for answer in answers] == ["b", "", ""]
    assert [answer["best_span"] for answer in answers] == ["b", "d", "g"]
    assert [answer["no_answer_score"] for answer in answers] == [-1.0, 1.0, 0.5]
    assert task().scores(rows, answers, CONFIG) == pytest.approx(
        {
            "eval/exact_match": 2 / 3, "eval/f1": 2 / 3, "eval/f1_answerable": 0.5, "eval/f1_unanswerable": 1.0,
            # The third question is answered, and the second one still is not.
            "eval/best_exact": 1.0, "eval/best_exact_threshold": 0.5,
            "eval/best_f1": 1.0, "eval/best_f1_threshold": 0.5,
        }
    )  # fmt: skip


def test_impossible_questions_alone_have_no_score_that_is_no_number(tokenizer):
    rows = [question("a", impossible=True)]
    found = features(tokenizer, *rows, training=False)
    answers = task().answers(rows, found, ends(found, (4, 4, 3.0, 4.0)), CONFIG)
    assert all(np.isfinite(value) for value in task().scores(rows, answers, CONFIG).values())


def test_a_context_of_nothing_that_is_read_has_no_span(tokenizer):
    rows = [question("\x7f", ("\x7f", 0)), question("a", impossible=True, number=1)]
    found = features(tokenizer, *rows, training=False)
    outputs = [{"start": np.zeros(9), "end": np.zeros(9)}] * 2
    (answer, _) = answers = task().answers(rows, found, outputs, CONFIG)
    assert (answer["predicted"], answer["best_span"], answer["n_best"]) == ("", "", [])
    assert json.loads(json.dumps(answer, allow_nan=False))["no_answer_score"] == 1e6
    assert np.isfinite(task().scores(rows, answers, CONFIG)["eval/best_f1_threshold"])


def test_two_files_may_number_their_questions_alike(tokenizer):
    rows = [question("a b", ("a", 0)), question("a b", ("b", 2))]
    found = features(tokenizer, *rows, training=False)
    answers = task().answers(rows, found, ends(found, (4, 4, 3.0, 0.0), (5, 5, 3.0, 0.0)), CONFIG)
    assert [answer["id"] for answer in answers] == ["0", "0"]
    assert task().scores(rows, answers, CONFIG)["eval/exact_match"] == 1.0
