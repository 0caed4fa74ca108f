"""The commands of docs/finetuning.md run as they stand, but for their size."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import train.finetune
from bert_jax import BertConfig, BertForPreTraining, BertTokenizer
from train.__main__ import run

PAGE = (Path(__file__).parents[1] / "docs" / "finetuning.md").read_text()
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("python -m train ") and "tfds:" not in line]
# One of each kind; of the others, all up to the training.
TRAINED = ("reviews", "names", "answers", "choices", "vectors", "tested", "domain", "domain-reviews")
SMALL = {"--batch-size": "8", "--max-length": "24"}
WORDS = ["good", "bad", "long", "short", "film", "book", "play", "song"]


def write_table(path, header, rows, delimiter):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerows([header, *rows])


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the page speaks of, and a small BERT under the name of a large one."""
    folder = tmp_path_factory.mktemp("page")
    texts = [f"a {one} {two}" for one in WORDS for two in WORDS]
    tokenizer = BertTokenizer.train([*texts, "the the of of"] * 3, 60)
    config = BertConfig.tiny(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=24,
    )  # fmt: skip
    model = BertForPreTraining(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    model.save_pretrained(folder / "bert-base-uncased", params)
    tokenizer.save_pretrained(folder / "bert-base-uncased")
    labels = ["no" if "bad" in text else "yes" for text in texts]
    for name in ("reviews", "train", "dev", "test", "long"):
        write_table(folder / f"{name}.tsv", ["text", "label"], zip(texts, labels, strict=True), "\t")
    pairs = list(zip(texts, texts[1:] + texts[:1], labels, strict=True))
    write_table(folder / "pairs.csv", ["premise", "hypothesis", "label"], pairs, ",")
    lines(folder / "topics.jsonl", [{"text": text, "label": text.split()[1:]} for text in texts])
    write_table(folder / "ratings.tsv", ["text", "stars"], [(t, len(t) / 3) for t in texts], "\t")
    tagged = [[("a", "O"), (text.split()[1], "B-KIND"), (text.split()[2], "I-KIND")] for text in texts]
    (folder / "names.conll").write_text("\n\n".join("\n".join(map("\t".join, words)) for words in tagged) + "\n")
    questions = [
        {"id": str(i), "question": "what is it", "answers": [{"text": t.split()[2], "answer_start": t.rindex(" ") + 1}]}
        for i, t in enumerate(texts[:20])
    ]
    paragraphs = [{"context": t, "qas": [q]} for t, q in zip(texts[:20], questions, strict=True)]
    (folder / "questions.json").write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]}))
    endings = [[text, "it is", *WORDS[:4], i % 4] for i, text in enumerate(texts)]
    write_table(folder / "swag.csv", ["sent1", "sent2", *(f"ending{i}" for i in range(4)), "label"], endings, ",")
    requests = [
        {"tokens": [w for w, _ in words], "tags": [t for _, t in words], "intent": label}
        for words, label in zip(tagged, labels, strict=True)
    ]
    lines(folder / "requests.jsonl", requests)
    scored = [(one, two, i % 6) for i, (one, two, _) in enumerate(pairs)]
    write_table(folder / "scored.csv", ["sentence1", "sentence2", "score"], scored, ",")
    write_table(folder / "paraphrases.tsv", ["sentence1", "sentence2"], [row[:2] for row in scored], "\t")
    (folder / "domain.txt").write_text("\n\n".join(f"The {w} is good. It is a {w}. That was all of it." for w in WORDS))
    (folder / "texts.txt").write_text("a good film\na bad book\n")
    return folder


def at_small_size(command):
    words = shlex.split(command)[3:]
    for option, value in SMALL.items():
        if option in words:
            words[words.index(option) + 1] = value
    small = [] if "--batch-size" in words else ["--batch-size", "8"]
    if words[0] == "pretrain":
        small += ["--optimizer.warmup-steps", "1"]
    if "--max-length" not in words:
        small += ["--max-length", "16"]
    steps = [] if "--epochs" in words else ["--steps", "2"]
    return [*words, *small, *steps, "--eval.every", "2", "--checkpoint.every", "2"]


class Enough(Exception):
    """Everything up to the training is right."""


def stop(*arguments):
    raise Enough


@pytest.mark.parametrize("command", COMMANDS, ids=[re.findall(r"--run runs/(\S+)", c)[0] for c in COMMANDS])
def test_command(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words, name = at_small_size(command), re.findall(r"--run runs/(\S+)", command)[0]
    if "--max-length 1024" in command:
        words[words.index("--max-length") + 1] = "48"
    if name not in TRAINED:
        monkeypatch.setattr(train.finetune, "train_seeds", stop)
        with pytest.raises(Enough):
            run(words)
        return
    assert run(words) == 0, capsys.readouterr().err
    assert (folder / "runs" / name / "export" / "model.safetensors").exists()


def test_what_is_said_of_use(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(example, "finetuning.md", "exec"), {})
    (line,) = re.findall(r"^python -m (bert_jax .*) < texts.txt$", PAGE, re.M)
    with (folder / "texts.txt").open() as texts:
        done = subprocess.run(
            [sys.executable, "-m", *line.split()], stdin=texts, capture_output=True, text=True, check=True
        )
    assert len(done.stdout.splitlines()) == 2


def test_there_are_commands():
    assert len(COMMANDS) == 16
