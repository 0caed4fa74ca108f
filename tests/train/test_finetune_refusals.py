"""Data and options that a fine-tuning task cannot work with: one clear line, exit code 2, and nothing written."""

import json

import pytest

from tests.bert_jax.folders import edit
from tests.fuzzing import check_line, snapshot
from tests.train.letters import save_bert
from train.__main__ import run

CLASSES = "text\tlabel\n" + "".join(f"a {row}\t{'xy'[row % 2]}\n" for row in range(12))
SCORES = "sentence1\tsentence2\tscore\n" + "".join(f"a\tb {row}\t{row}\n" for row in range(12))
TAGGED = "a B-p\nb O\n\n" * 12
JOINT = "tokens\ttags\tintent\n" + "".join(f"a b\tB-p O\t{'xy'[row % 2]}\n" for row in range(12))
CHOICES = "sent1\tsent2\tending0\tending1\tending2\tending3\tlabel\n" + "a\tb\tc\td\te\tf\t1\n" * 12


def squad(*answers, question="b ?", context="a b c d"):
    """Questions with these members."""
    entries = [{"id": str(number), "question": question, **answer} for number, answer in enumerate(answers)]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": entries}]}]})


RIGHT = {"answers": [{"text": "b", "answer_start": 2}]}
FILES = {
    "classes.tsv": CLASSES,
    "scores.tsv": SCORES,
    "tagged.conll": TAGGED,
    "joint.tsv": JOINT,
    "choices.tsv": CHOICES,
    "squad.json": squad(*[RIGHT] * 12),
    "rare.tsv": CLASSES.replace("a 0\tx", "a 0\tz"),
    "unknown.tsv": "text\tlabel\na\tx\na\ty\n\na\tz\n",
    "no_label.jsonl": '{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n{"text": "c", "label": "y"}\n',
    "alike.tsv": CLASSES.replace("\ty", "\tx"),
    "broken_label.csv": 'text,label\na,x\nb,y\nc,"y\nz"\n',
    "header.tsv": "text\tlabel\n",
    "one.tsv": "text\tlabel\na\tx\n",
    "unread.tsv": "text\tlabel\n" + "\u200b\tx\n\u200b\ty\n" * 6,
    "equal.tsv": SCORES.replace("\t1\n", "\t0\n").split("a\tb 2")[0],
    "no_score.tsv": SCORES.replace("\t3\n", "\tmany\n"),
    "no_bio.conll": "a B-p\nb O\n\na O\nb I-p\n\n",
    "all_o.conll": "a O\nb O\n\n" * 12,
    "unknown.conll": "a B-p\n\na B-p\nb B-q\n",
    "intent.tsv": "tokens\ttags\tintent\na b\tB-p O\tw\n",
    "one_intent.tsv": JOINT.replace("\ty", "\tx"),
    "uneven.tsv": JOINT.replace("a b\tB-p O\tx", "a b c\tB-p O\tx"),
    "elsewhere.json": squad(RIGHT, {"answers": [{"text": "b", "answer_start": 3}]}),
    "nowhere.json": squad(RIGHT, {"answers": [{"text": "z", "answer_start": 2}]}),
    "no_answer.json": squad(RIGHT, {"answers": []}, RIGHT),
    "both.json": squad(RIGHT, RIGHT | {"is_impossible": True}),
    "long.json": squad(*[RIGHT] * 3, question="b " * 30),
    "fifth.tsv": CHOICES.replace("\t1\n", "\t4\n"),
    "no_ending.tsv": CHOICES.replace("ending3", "other"),
}

QA = "--task question-answering --max-length 32 --stride 8"
WRONG = [
    # classification
    ("--data {f}/classes.tsv --eval.data {f}/unknown.tsv", ["--eval.data: {f}/unknown.tsv:5", "label 'z'", "x, y"]),
    ("--data {f}/classes.tsv --test-data {f}/unknown.tsv", ["--test-data: {f}/unknown.tsv:5", "'z'", "x, y"]),
    ("--data {f}/rare.tsv", ["{f}/rare.tsv:2 (held out)", "'z'", "x, y", "train on a row that has it"]),
    ("--data {f}/no_label.jsonl --eval.data {f}/classes.tsv", ["--data: {f}/no_label.jsonl:2", "no label"]),
    ("--data {f}/classes.tsv --eval.data {f}/no_label.jsonl", ["--eval.data: {f}/no_label.jsonl:2", "no label"]),
    ("--data {f}/alike.tsv", ["{f}/alike.tsv:3", "'x'", "two classes are needed"]),
    ("--data {f}/broken_label.csv", ["{f}/broken_label.csv:4", "one line", "'y\\nz'"]),
    ("--data {f}/classes.tsv --problem-type regression", ["{f}/classes.tsv:2", "finite number", "'x'"]),
    ("--data {f}/scores.tsv", ["{f}/scores.tsv:1", "no column 'text'", "--columns.text", "sentence1, sentence2"]),
    ("--data {f}/classes.tsv --columns.tokens text", ["--columns.tokens 'text'", "--columns.text"]),
    ("--data {f}/classes.tsv --columns.label=", ["--columns.label ''"]),
    ("--columns.text words", ["--columns.text 'words'", "without --data"]),
    ("--problem-type multi-label", ["--problem-type 'multi-label'", "without --data"]),
    ("--test-data {f}/classes.tsv", ["--test-data", "without --data"]),
    ("--data {f}/classes.tsv --seed 4294967295 --seeds 2", ["--seeds 2", "--seed 4294967295"]),
    ("--data {f}/classes.tsv --epochs 1e30", ["--epochs 1e+30"]),
    ("--task tagging --data {f}/no_bio.conll --columns.tokens word", ["--columns", "CoNLL"]),
    ("--data {f}/classes.tsv --eval.data {f}/header.tsv", ["--eval.data: {f}/header.tsv", "no rows"]),
    ("--data {f}/header.tsv", ["--data: {f}/header.tsv", "no rows"]),
    ("--data {f}/one.tsv", ["--data: one row", "--eval.data"]),
    ("--data {f}/unread.tsv", ["--data", "nothing to learn from"]),
    ("--data {f}/tagged.conll", ["--data: {f}/tagged.conll", ".tsv"]),
    ("--data {f}/classes.tsv --stride 9", ["--stride 9", "--task classification"]),
    ("--data {f}/classes.tsv --steps 5 --epochs 2", ["--epochs 2", "--steps 5"]),
    # similarity
    ("--task similarity --data {f}/equal.tsv", ["{f}/equal.tsv:3", "all scores are 0.0"]),
    ("--task similarity --data {f}/no_score.tsv", ["{f}/no_score.tsv:5", "finite number", "'many'"]),
    ("--task similarity --data {f}/scores.tsv --columns.label= --accumulate 2 --batch-size 32", ["--accumulate 2"]),
    # tagging
    ("--task tagging --data {f}/no_bio.conll", ["{f}/no_bio.conll:5", "'I-p' follows 'O'", "B-p"]),
    ("--task tagging --data {f}/all_o.conll", ["{f}/all_o.conll:4", "all tags are O"]),
    ("--task tagging --data {f}/tagged.conll --eval.data {f}/unknown.conll", ["unknown.conll:3", "'B-q'", "I-p"]),
    ("--task tagging --data {f}/classes.tsv", ["{f}/classes.tsv:1", "no column 'tokens'", "--columns.tokens"]),
    ("--task tagging --data {f}/tagged.conll --columns.label tag", ["--columns.label 'tag'", "--columns.tags"]),
    ("--task tagging --data {f}/tagged.conll --problem-type regression", ["--problem-type", "--task tagging"]),
    # joint
    ("--task joint --data {f}/joint.tsv --eval.data {f}/intent.tsv", ["{f}/intent.tsv:2", "intent 'w'", "x, y"]),
    ("--task joint --data {f}/one_intent.tsv", ["{f}/one_intent.tsv:3", "two classes are needed"]),
    ("--task joint --data {f}/uneven.tsv", ["{f}/uneven.tsv:2", "3 tokens and 2 tags"]),
    # question answering
    (f"{QA} --data {{f}}/elsewhere.json", ["qas[1].answers[0]", "'b' is not at answer_start 3", "but at 2"]),
    (f"{QA} --data {{f}}/nowhere.json", ["{f}/nowhere.json: data[0].paragraphs[0].qas[1]", "'z'", "nowhere"]),
    (f"{QA} --data {{f}}/no_answer.json", ["{f}/no_answer.json: data[0].paragraphs[0].qas[1]", "no answer"]),
    (f"{QA} --data {{f}}/both.json", ["{f}/both.json: data[0].paragraphs[0].qas[1]", "is_impossible"]),
    (f"{QA} --data {{f}}/long.json", ["{f}/long.json: data[0].paragraphs[0].qas[1]", "--max-length", "--stride"]),
    (f"{QA} --data {{f}}/classes.tsv", ["{f}/classes.tsv", "JSON"]),
    (f"{QA} --data {{f}}/squad.json --columns.text question", ["--columns.text", "no columns"]),
    ("--task question-answering --data {f}/squad.json --max-length 32 --stride 32", ["--stride 32", "--max-length 32"]),
    # multiple choice
    ("--task multiple-choice --data {f}/fifth.tsv", ["{f}/fifth.tsv:2", "label '4'", "from 0 to 3"]),
    ("--task multiple-choice --data {f}/no_ending.tsv", ["{f}/no_ending.tsv:1", "no column 'ending3'", "choices.3"]),
    ("--task multiple-choice --data {f}/choices.tsv --columns.choices ending0", ["--columns.choices ['ending0']"]),
    # models
    ("--data {f}/classes.tsv --model {f}/bert --max-length 200", ["--model {f}/bert", "from 12,", "to 144, not 200"]),
    ("--data {f}/classes.tsv --model {f}/without", ["--model {f}/without", "model.safetensors"]),
    ("--data {f}/classes.tsv --model {f}/broken", ["--model {f}/broken", "model.safetensors"]),
    ("--data {f}/classes.tsv --model {f}/other", ["--model {f}/other", "vocab_size", "10"]),
    ("--task multiple-choice --data {f}/choices.tsv --model {f}/single", ["--model {f}/single", "type_vocab_size 1"]),
    ("--data {f}/classes.tsv --model {f}/nowhere", ["--model {f}/nowhere"]),
    ("--data {f}/classes.tsv --model {f}/bert --preset base", ["--preset 'base'", "--model"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    for name in ("bert", "without", "broken", "other", "single"):
        (folder / name).mkdir()
        save_bert(folder / name)
    edit(folder / "single", type_vocab_size=1)
    edit(folder / "other", vocab_size=10)
    (folder / "without" / "model.safetensors").unlink()
    content = (folder / "broken" / "model.safetensors").read_bytes()
    (folder / "broken" / "model.safetensors").write_bytes(content[:-9])
    return folder


@pytest.mark.parametrize(("command", "said"), WRONG, ids=[command for command, _ in WRONG])
def test_one_line_exit_code_2_and_nothing_written(command, said, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = snapshot(folder)
    options = command.format(f=folder).split(" ")
    assert run(["finetune", *options, "--run", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith("\n")
    check_line(captured.err[:-1], "train: error: ")
    for part in said:
        assert part.format(f=folder) in captured.err
    assert snapshot(folder) == before and not [*tmp_path.iterdir()]
