"""Questions from SQuAD's JSON, and what is said of files that are not as they should be."""

import copy
import gzip
import json

import pytest

from train.data.squad import Answer, Question, read_questions
from train.errors import InputError

CONTEXT = "Ada met Bob. Bob met Ada in Rome."
FILE = {
    "version": "v2.0",
    "data": [
        {"title": "none", "paragraphs": []},
        {
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Who met Bob?",
                            "answers": [{"text": "Ada", "answer_start": 0}, {"text": "Ada", "answer_start": 21}],
                        },
                        {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": 1},
                        {"id": "q3", "question": "Where?", "is_impossible": False},
                    ],
                }
            ]
        },
    ],
}


def write(folder, tree, name="a.json"):
    content = tree if isinstance(tree, bytes) else json.dumps(tree, indent=1).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return str(folder / name)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_answers_impossible_and_unanswered_questions(tmp_path, name):
    path = write(tmp_path, FILE, name)
    place = f"--data: {path}: data[1].paragraphs[0].qas"
    assert read_questions(path, option="--data") == [
        Question(f"{place}[0]", "q1", "Who met Bob?", CONTEXT, [Answer("Ada", 0), Answer("Ada", 21)], False),
        Question(f"{place}[1]", "q2", "Why?", CONTEXT, [], True),
        Question(f"{place}[2]", "q3", "Where?", CONTEXT, [], False),
    ]


def changed(*keys, to):
    tree = copy.deepcopy(FILE)
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    if to is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    return tree


PARAGRAPH = ("data", 1, "paragraphs", 0)
QA = (*PARAGRAPH, "qas", 0)
AT = "data[1].paragraphs[0]"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], " must hold an object with the member 'data' (SQuAD), not []"),
        ({}, " has no 'data'"),
        ({"data": {}}, ".data must be a list, not {}"),
        ({"data": []}, " has no questions"),
        (changed("data", 1, to=[1]), ": data[1] must be an object, not [1]"),
        (changed("data", 1, "paragraphs", to=None), ": data[1] has no 'paragraphs'"),
        (changed(*PARAGRAPH, "context", to=" "), f": {AT}.context is blank"),
        (changed(*PARAGRAPH, "context", to="a\0"), f": {AT}.context has a NUL"),
        (changed(*PARAGRAPH, "qas", to="x"), f": {AT}.qas must be a list, not 'x'"),
        (changed(*QA, to=3), f": {AT}.qas[0] must be an object, not 3"),
        (changed(*QA, "id", to=7), f": {AT}.qas[0].id must be a string, not 7"),
        (changed(*QA, "id", to="q3"), f": {AT}.qas[2]: the id 'q3' is that of {AT}.qas[0] too"),
        (changed(*QA, "question", to=""), f": {AT}.qas[0].question is blank"),
        (changed(*QA, "question", to="a\ud800"), f": {AT}.qas[0].question has half a surrogate pair"),
        (changed(*QA, "is_impossible", to=1), f": {AT}.qas[0].is_impossible must be true or false, not 1"),
        (changed(*QA, "is_impossible", to=True), f": {AT}.qas[0] has answers though is_impossible is true"),
        (changed(*QA, "answers", to={}), f": {AT}.qas[0].answers must be a list"),
        (changed(*QA, "answers", 1, to="Ada"), f": {AT}.qas[0].answers[1] must be an object, not 'Ada'"),
        (changed(*QA, "answers", 1, "text", to=""), f": {AT}.qas[0].answers[1].text is blank"),
        (changed(*QA, "answers", 1, "answer_start", to=0.0), f": {AT}.qas[0].answers[1].answer_start must be an int"),
        (changed(*QA, "answers", 1, "answer_start", to=True), f": {AT}.qas[0].answers[1].answer_start must be an int"),
    ],
)
def test_wrong_structure_is_named_with_its_path(tmp_path, tree, message):
    path = write(tmp_path, tree)
    with pytest.raises(InputError) as caught:
        read_questions(path, option="--data")
    assert str(caught.value).startswith(f"--data: {path}{message}") and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "start", "message"),
    [
        ("Rome", 27, "the answer 'Rome' is not at answer_start 27 of the context, which has ' Rom' there, but at 28"),
        ("Bob", 0, "which has 'Ada' there, but at 8, 13"),
        ("Eve", 0, "which has 'Ada' there, and nowhere else"),
        ("Rome", -5, "which has nothing there, but at 28"),
        ("Rome", 10**30, "which has nothing there, but at 28"),
    ],
)
def test_answers_elsewhere_are_named_with_where_they_are(tmp_path, text, start, message):
    path = write(tmp_path, changed(*QA, "answers", 1, to={"text": text, "answer_start": start}))
    with pytest.raises(InputError) as caught:
        read_questions(path, option="--eval.data")
    assert str(caught.value).startswith(f"--eval.data: {path}: {AT}.qas[0].answers[1]: the answer")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b'{"data": 1, "data": 2}', b"[" * 100_000, b'{"a": "\xff"}', b"\0"])
def test_what_is_no_json(tmp_path, content):
    with pytest.raises(InputError, match="^--data: .*a.json"):
        read_questions(write(tmp_path, content), option="--data")


def test_real_questions(shared_data):
    for name, count in (("qed_train", 1100), ("qed_valid", 255), ("xquad_en", 1190)):
        questions = read_questions(str(shared_data / "qa" / f"{name}.json.gz"), option="--data")
        assert len(questions) == count
        assert all(q.context[a.start :].startswith(a.text) for q in questions for a in q.answers)
