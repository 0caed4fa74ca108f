"""The commands of docs/translation.md run as they stand, but for their size."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train.translate
from train.__main__ import run
from transformer_jax import lines
from transformer_jax.jobs import JOBS

PAGE = (Path(__file__).parents[1] / "docs" / "translation.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M)
LINES = [line for language, block in BLOCKS if not language for line in block.splitlines()]
# Those whose export is used further down; of the others, all up to the training.
TRAINED = ("en-de", "post")
SMALL = {"--batch-size": "256", "--vocab-size": "38", "--target-vocab-size": "38", "--preset": "tiny"}
NOUNS = {"book": "Buch", "song": "Lied", "house": "Haus", "word": "Wort", "jump": "Sprung", "farm": "Hof"}
NOUNS |= {"water": "Wasser", "letter": "Buchstabe", "street": "Strasse", "winter": "Winter", "sister": "Schwester"}
KINDS = {"good": "gut", "long": "lang", "quick": "flink", "very old": "steinalt", "perplexing": "verzwickt"}
PAIRS = [(f"the {n} is {k}", f"{NOUNS[n]} ist {KINDS[k]}") for k in KINDS for n in NOUNS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the page speaks of."""
    folder = tmp_path_factory.mktemp("page")

    def table(name, pairs):
        (folder / f"{name}.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs))

    table("train", PAIRS[:-8])
    table("dev", PAIRS[-8:])
    table("medicine", PAIRS[4:])
    table("french", [(source, target[::-1]) for source, target in PAIRS[:-8]])
    table("de-en", [(target, source) for source, target in PAIRS])
    (folder / "mono.de").write_text("".join(f"{target}\n" for _, target in PAIRS[:6]))
    (folder / "in.txt").write_text("a good book\n\nthe long song\n")
    (folder / "reference.txt").write_text("ein gutes Buch\n\ndas lange Lied\n")
    return folder


def at_small_size(words):
    for option, value in SMALL.items():
        if option in words:
            words[words.index(option) + 1] = value
    few = "--optimizer.warmup-steps 1 --eval.every 2 --checkpoint.every 2 --bleu-sentences 2 --max-length 32"
    steps = [] if "--steps" in words else ["--steps", "2"]
    own = [] if "--data" not in words or "--eval.data" in words else ["--held-out", "4"]
    sizes = [] if {"--model", "--vocab-size"} & {*words} or "--data" not in words else ["--vocab-size", "40"]
    narrow = "--architecture.features 16 --architecture.num-heads 2 --architecture.mlp-dim 24 --architecture.layers 1"
    shape = [] if "--model" in words else narrow.split()
    batch = [] if "--batch-size" in words else ["--batch-size", "256"]
    return [*words, *few.split(), *steps, *own, *sizes, *shape, *batch]


class Enough(Exception):
    """Everything up to the training is right."""


def stop(*arguments):
    raise Enough


def answer(words, monkeypatch):
    """A command that reads and writes files, in this process."""
    program, *words, _, source, _, sink = words
    with open(source) as stdin, open(sink, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        assert lines.run(program, JOBS, [*words, "--devices", "1", "--batch-size", "4"]) == 0


def test_commands(folder, monkeypatch, capsys):
    """In the order of the page, for each may need what those before have left."""
    monkeypatch.chdir(folder)
    trained = set()
    for line in LINES:
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "train"]:
            name = words[words.index("--run") + 1].removeprefix("runs/")
            command = at_small_size(words[3:])
            if name in TRAINED and name not in trained:
                trained.add(name)
                assert run(command) == 0, capsys.readouterr().err
                assert (folder / "runs" / name / "export" / "model.safetensors").exists()
                continue
            with monkeypatch.context() as patch, pytest.raises(Enough):
                patch.setattr(train.translate, "train", stop)
                run(command)
            if name == "de-en":  # stands in for a model that was trained the other way round
                shutil.copytree("runs/en-de/export", "runs/de-en/export")
        elif words[0] == "python":
            answer(words[2:], monkeypatch)
        else:
            subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    assert trained == {*TRAINED} and len(LINES) == 19
    answers = [(folder / name).read_text().splitlines() for name in ("out.txt", "best.jsonl", "agreed.txt")]
    assert [len(lines) for lines in answers] == [3, 3, 3]
    back = [row.split("\t") for row in (folder / "back.tsv").read_text().splitlines()]
    assert back and all(source.startswith("<BT> ") and (target in dict(PAIRS).values()) for source, target in back)


@pytest.mark.filterwarnings("ignore:a Marian's norm_epsilon")
def test_what_is_said_in_python(folder, monkeypatch):
    monkeypatch.chdir(folder)
    examples = [block for language, block in BLOCKS if language == "python"]
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "translation.md", "exec"), {})
    assert (folder / "marian" / "source.spm").exists()
