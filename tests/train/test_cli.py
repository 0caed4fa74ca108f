"""Wrong input is met with one clear line and exit code 2, and nothing is written."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from train.__main__ import run

ROOT = Path(__file__).parents[2]
GOOD_PAIRS = "".join(f"sentence number {i} of many\tSatz Nummer {i} von vielen\n" for i in range(60))
GOOD_TEXT = "\n\n".join(
    f"The {i}th document speaks first.\nThen it goes on to speak.\nIt ends here with {i}." for i in range(30)
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pairs.tsv").write_text(GOOD_PAIRS)
    (tmp_path / "text.txt").write_text(GOOD_TEXT)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "no_tab.tsv").write_text(GOOD_PAIRS + "a row without a tab\n")
    (tmp_path / "no_tab.tsv.gz").write_bytes(gzip.compress((GOOD_PAIRS + "a row without a tab\n").encode()))
    (tmp_path / "bytes.txt").write_bytes(b"good line\n" + b"bad \xff line\n")
    (tmp_path / "bytes.tsv").write_bytes(GOOD_PAIRS.encode() + b"\xff\tx\n")
    (tmp_path / "source.txt").write_text("one\ntwo\n")
    (tmp_path / "target.txt").write_text("eins\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "A good record. And one more."}\n{"txt": 1}\n')
    (tmp_path / "long.tsv").write_text("one sentence " * 99 + "\tein Satz\n")
    (tmp_path / "a_file").write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("not a run")
    for kind, name in (("gpt2", "gpt"), ("bert", "bert")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
    return tmp_path


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


WRONG = [
    ("pretrain --data {f}/missing.txt", ["--data", "missing.txt"]),
    ("pretrain --data", ["--data names nothing"]),
    ("finetune --data --epochs 1", ["--data names nothing"]),
    ("pretrain --data --", ["Unrecognized options: --"]),
    ("pretrain --data {f}/empty.txt", ["--data", "empty.txt", "empty"]),
    ("pretrain --data {f}/bytes.txt", ["--data", "bytes.txt", "14"]),
    ("pretrain --data {f}/bad.jsonl", ["bad.jsonl:2", "text"]),
    ("pretrain --data {f}/text.txt --eval.data {f}/missing.txt", ["--eval.data", "missing.txt"]),
    ("pretrain --data tfds:wiki40b/en", ["--data", "wiki40b/en", "download_and_prepare"]),
    ("pretrain --preset enormous", ["--preset", "enormous", "large"]),
    ("pretrain --colour blue", ["--colour"]),
    ("pretrain --steps many", ["--steps", "many"]),
    ("pretrain --steps 0", ["--steps", "0"]),
    ("pretrain --mesh.data 3", ["--mesh.data 3", "8"]),
    ("pretrain --batch-size 12 --mesh.data 8", ["--batch-size 12", "8"]),
    ("pretrain --data {f}/text.txt --max-length 600", ["--max-length 600", "512"]),
    ("pretrain --data {f}/text.txt --tokenizer {f}/other", ["--tokenizer", "other"]),
    ("pretrain --optimizer.learning-rate -1", ["--optimizer.learning-rate", "-1"]),
    ("pretrain --data {f}/text.txt --vocab-size 10", ["--vocab-size", "10"]),
    ("translate --data {f}/missing.tsv", ["--data", "missing.tsv"]),
    ("translate --data {f}/empty.tsv", ["--data", "empty.tsv", "empty"]),
    ("translate --data {f}/no_tab.tsv", ["no_tab.tsv:61", "tab"]),
    ("translate --data {f}/no_tab.tsv.gz", ["no_tab.tsv.gz:61", "tab"]),
    ("translate --data {f}/bytes.tsv", ["bytes.tsv", str(len(GOOD_PAIRS))]),
    ("translate --data {f}/source.txt {f}/target.txt", ["2", "1", "target.txt"]),
    ("translate --data {f}/pairs.tsv --held-out 9 --vocab-size 4000", ["--vocab-size", "4000"]),
    ("translate --data tfds:wmt14_translate/de-en", ["--data", "wmt14_translate/de-en"]),
    ("translate --preset small", ["--preset", "small", "base"]),
    ("translate --mesh.tensor 3", ["--mesh.tensor 3", "8"]),
    ("translate --data {f}/pairs.tsv --held-out 500", ["--held-out", "500"]),
    ("translate --num-heads 7", ["--num-heads"]),
    *[(f"translate --label-smoothing {value}", ["--label-smoothing", value]) for value in ("nan", "-1", "2", "1")],
    *[(f"translate --batch-size {value}", ["--batch-size", value]) for value in ("0", "-5")],
    ("translate --data {f}/pairs.tsv --held-out 9 --vocab-size 36 --batch-size 1", ["--batch-size 1"]),
    *[(f"translate --average {value}", ["--average", value]) for value in ("0", "-1")],
    ("translate --average 6", ["--average 6", "--checkpoint.keep 6"]),
    *[(f"translate --bleu-sentences {value}", ["--bleu-sentences", value]) for value in ("0", "-1")],
    *[(f"translate --vocab-size {value}", ["--vocab-size", value]) for value in ("0", "99999999999")],
    *[
        (f"{job} --seed {value}", ["--seed", value])
        for job in ("pretrain", "finetune", "translate")
        for value in ("-1", str(2**64))
    ],
    ("translate --held-out 0", ["--held-out", "0"]),
    ("translate --preset base --model {f}/other", ["--preset 'base'", "--model"]),
    ("translate --model {f}/other", ["--model", "other", "config.json"]),
    ("translate --model {f}/gpt", ["--model", "gpt", "model_type 'gpt2'", "'transformer_jax', 'marian' or 'bert'"]),
    ("translate --model {f}/bert", ["--model", "bert", "model.safetensors"]),
    ("pretrain --batch-size 0", ["--batch-size", "0"]),
    ("pretrain --max-length 4", ["--max-length", "4"]),
    ("pretrain --max-bad-steps 0", ["--max-bad-steps", "0"]),
    ("pretrain --vocab-size 99999999999", ["--vocab-size", "99999999999"]),
    ("pretrain --model {f}/other", ["--model", "other", "config.json"]),
    ("pretrain --model {f}/nowhere", ["--model", "nowhere"]),
    ("pretrain --model {f}/other --vocab-size 99", ["--vocab-size 99", "--model"]),
    ("pretrain --next-sentence maybe", ["--next-sentence", "maybe"]),
    ("pretrain --optimizer.decay-steps 5", ["--optimizer.decay-steps 5", "warmup-stable-decay"]),
    ("pretrain --optimizer.learning-rate inf", ["--optimizer.learning-rate", "inf"]),
    ("pretrain --data {f}/text.txt --eval.data {f}/empty.txt", ["--eval.data", "empty.txt"]),
    ("translate --data {f}/pairs.tsv --vocab-size 36 --batch-size 1024 --eval.data {f}/long.tsv", ["--eval.data"]),
    *[(f"finetune --epochs {value}", ["--epochs", value]) for value in ("0", "-1", "nan", "x")],
    *[(f"finetune --seeds {value}", ["--seeds", value]) for value in ("0", "1001")],
    ("finetune --task dance", ["--task", "dance", "joint"]),
    ("finetune --data tfds:glue/sst2", ["--data", "glue/sst2", "download_and_prepare"]),
    ("finetune --batch-size 12", ["--batch-size 12", "8"]),
    ("dance", ["dance", "pretrain"]),
]


@pytest.mark.parametrize(("command", "said"), WRONG, ids=[command for command, _ in WRONG])
def test_one_line_exit_code_2_and_nothing_written(command, said, folder, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
    before = snapshot(folder)
    job, *options = command.format(f=folder).split(" ")
    assert run([job, *options, *(["--run", str(folder / "run")] if job != "dance" else [])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "Error parsing" not in error
    for part in said:
        assert part in error
    assert snapshot(folder) == before


@pytest.mark.parametrize("job", ["pretrain", "finetune --data {f}/classes.tsv", "translate"])
def test_a_run_folder_that_is_not_this_run(job, folder, capsys):
    (folder / "classes.tsv").write_text("text\tlabel\n" + "one\tx\ntwo\ty\n" * 9)

    def refused(target, said):
        before = snapshot(folder)
        assert run([*job.format(f=folder).split(" "), "--run", str(target)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
        assert snapshot(folder) == before

    refused(folder / "a_file", "is a file")
    refused(folder / "a_file" / "run", "Not a directory")
    refused(folder / ("n" * 300), "name too long")
    refused(folder / "other", "holds no run")
    torn = folder / "torn"
    torn.mkdir()
    (torn / "config.json").write_text('{"job": ')
    refused(torn, "cannot be read")
    made = folder / "made"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"job": "other"}))
    refused(made, "another configuration")


def test_no_job_prints_the_usage(capsys):
    assert run([]) == 2
    assert run(["--help"]) == 0
    assert "pretrain|finetune|translate" in capsys.readouterr().out


def test_output_that_nobody_reads():
    """`--help | head` ends quietly, a full disk is one line."""
    command = [sys.executable, "-m", "train", "pretrain", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
