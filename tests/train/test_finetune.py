"""Fine-tuning from end to end on all 8 devices: what it leaves behind, goes on with, chooses and starts from."""

import itertools
import json
import math
import os
import shutil
import signal
import warnings
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.experimental.compilation_cache import compilation_cache

from bert_jax import BertForQuestionAnswering, BertForSequenceClassification, BertTokenizer
from tests.train.letters import LETTERS, POSITIONS, save_bert
from train import finetune, report
from train.__main__ import run
from train.checkpoint import Checkpoints
from train.evaluation import Evaluation
from train.tasks.classification import Classification


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Runs of the same shapes share what is compiled."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Their pictures take longer than these models; `whole` draws them."""
    monkeypatch.setattr(report, "draw_curves", lambda *arguments, **options: b"")


def table(count, seed):
    """Texts of letters, labelled by whether "a" is among them."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice([*LETTERS], rng.integers(2, 7))) for _ in range(count)]
    return "text\tlabel\n" + "".join(f"{text}\t{'with' if 'a' in text else 'out'}\n" for text in texts)


@pytest.fixture(scope="module")
def command(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "train.tsv").write_text(table(40, 0))
    (folder / "dev.tsv").write_text(table(11, 1))
    sizes = ["--batch-size", "8", "--max-length", str(POSITIONS), "--steps", "4", "--eval.every", "2"]
    data = ["--data", str(folder / "train.tsv"), "--eval.data", str(folder / "dev.tsv")]
    rate = ["--optimizer.learning-rate", "1e-2", "--log.every", "1", "--checkpoint.every", "2"]
    return ["finetune", "--model", str(bert), *data, *sizes, *rate]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """A run from its beginning to its end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert go(folder, command) == 0
    return folder


def go(folder, command, *more):
    return run([*command, *more, "--run", str(folder)])


def weights(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def kept(folder):
    """What must not depend on when a run was interrupted, and how often the command was given."""
    paths = [*(folder / "export").iterdir(), *(folder / name for name in ("predictions.jsonl", "scores.json"))]
    return {path.name: path.read_bytes() for path in (*paths, folder / "confusion.png")}


def facts(folder):
    return [
        {name: value for name, value in row.items() if name != "tokens_per_second"}
        for row in lines(folder / "metrics.jsonl")
    ]


# --- what is left behind -----------------------------------------------------------------------------------------


def test_a_run_leaves_answers_scores_pictures_and_a_model(whole):
    predictions = lines(whole / "predictions.jsonl")
    rows = [line.split("\t") for line in table(11, 1).splitlines()[1:]]
    assert [[row["text"], row["label"]] for row in predictions] == rows
    assert all(np.isclose(sum(row["probabilities"].values()), 1, atol=1e-5) for row in predictions)

    scores = json.loads((whole / "scores.json").read_text())
    (row,) = scores["seeds"].values()
    accuracy = np.mean([row["predicted"] == row["label"] for row in predictions])
    assert row["eval/accuracy"] == scores["mean"]["eval/accuracy"] == pytest.approx(accuracy)
    assert {"eval/loss", "eval/f1", "eval/f1_macro", "eval/matthews"} < {*row} and row["step"] in (2, 4)
    assert "standard_deviation" not in scores
    evaluations = {found.pop("step"): found for found in facts(whole) if "eval/loss" in found}
    step = row.pop("step")
    assert evaluations[step] == row and [*evaluations] == [2, 4]
    assert (whole / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in whole.iterdir()} >= {"config.json", "curves.png", "checkpoints", "tensorboard"}


def test_the_export_gives_the_answers_of_the_run(whole):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, params = BertForSequenceClassification.from_pretrained(whole / "export")
    assert model.config.id2label == ("out", "with")
    assert model.config.problem_type == "single_label_classification"
    tokenizer = BertTokenizer.from_pretrained(whole / "export")
    predictions = lines(whole / "predictions.jsonl")
    batch = tokenizer([row["text"] for row in predictions])
    logits = model.apply({"params": params}, **batch).logits
    expected = [[row["probabilities"][name] for name in model.config.id2label] for row in predictions]
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-5)


def test_the_same_command_again_changes_nothing(command, whole, capsys):
    before, rows = kept(whole), facts(whole)
    assert go(whole, command) == 0
    assert kept(whole) == before and facts(whole) == rows
    said = capsys.readouterr().out
    assert "scores of the best checkpoint by accuracy" in said and "export" in said


def interrupted_at(number, command, folder, monkeypatch):
    """The run gets SIGTERM in so many evaluations from its beginning."""
    evaluate, counts = Evaluation.__call__, itertools.count(1)

    def interrupted(self, params):
        if next(counts) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, params)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "__call__", interrupted)
        assert run([*command, "--run", str(folder)]) == 143


def test_interrupted_and_continued_is_never_interrupted(command, whole, tmp_path, monkeypatch, capsys):
    interrupted_at(1, command, tmp_path / "run", monkeypatch)
    assert "goes on from step 2" in capsys.readouterr().err and not (tmp_path / "run" / "export").exists()
    assert go(tmp_path / "run", command) == 0
    assert kept(tmp_path / "run") == kept(whole)
    assert facts(tmp_path / "run") == facts(whole)


def test_two_seeds_are_two_runs_and_their_mean(command, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    interrupted_at(4, [*command, "--seeds", "2"], folder, monkeypatch)  # in the second one
    assert not (folder / "scores.json").exists()
    handed, train = [], finetune.train
    monkeypatch.setattr(finetune, "train", lambda task, *others: handed.append(task) or train(task, *others))
    assert go(folder, command, "--seeds", "2") == 0
    starts = [flax.traverse_util.flatten_dict(task.params, sep="/") for task in handed]
    differing = [path for path in starts[0] if not np.array_equal(starts[0][path], starts[1][path])]
    assert differing == ["classifier/kernel"]  # the head, which --model lacks
    assert not np.array_equal(handed[0].batches.members(0), handed[1].batches.members(0))
    scores = json.loads((folder / "scores.json").read_text())
    first, second = (scores["seeds"][seed] for seed in "01")
    assert first == json.loads((whole / "scores.json").read_text())["seeds"]["0"]
    for name in scores["mean"]:
        values = [first[name], second[name]]
        assert scores["mean"][name] == pytest.approx(np.mean(values))
        assert scores["standard_deviation"][name] == pytest.approx(np.std(values, ddof=1))
    one, other = (lines(folder / f"seed-{seed}" / "predictions.jsonl") for seed in (0, 1))
    assert one == lines(whole / "predictions.jsonl")
    assert [row["text"] for row in one] == [row["text"] for row in other] and one != other
    best = max((0, 1), key=lambda seed: scores["seeds"][str(seed)]["eval/accuracy"])
    (path,) = (folder / f"seed-{best}").glob(f"checkpoints/{scores['seeds'][str(best)]['step']}")
    assert path.is_dir() and (folder / f"seed-{best}" / "confusion.png").exists()
    if best == 0:
        assert all(np.array_equal(weights(folder / "export")[k], v) for k, v in weights(whole / "export").items())


# --- what is chosen ----------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_exported_and_not_the_last_one(command, tmp_path, monkeypatch, capsys):
    """Scores that fall from the first evaluation on; `--eval.patience` ends the run after two that are no better."""
    known = []

    def scores(self, rows, answers, config):
        key = json.dumps(answers)
        if key not in known:
            known.append(key)
        return {"eval/accuracy": 0.9 - 0.1 * known.index(key), "eval/f1": 0.0}

    monkeypatch.setattr(Classification, "scores", scores)
    folder = tmp_path / "run"
    assert go(folder, command, "--steps", "9", "--eval.every", "1", "--eval.patience", "2") == 0
    assert "ends at step 3: eval/accuracy has not been better for 2 evaluations" in capsys.readouterr().out
    assert json.loads((folder / "scores.json").read_text())["seeds"]["0"]["step"] == 1
    with Checkpoints(folder / "checkpoints", keep_latest=1, best_metric="eval/accuracy", best_mode="max") as kept:
        assert kept.steps() == [1, 3] and kept.best_step() == 1
        best, last = (kept.restore_params(step)["classifier"]["kernel"] for step in (1, 3))
    exported = weights(folder / "export")["classifier.weight"].T
    np.testing.assert_array_equal(exported, best)
    assert not np.array_equal(best, last)


# --- what is started from ----------------------------------------------------------------------------------------

STILL = ["--optimizer.learning-rate", "1e-12", "--steps", "1"]


def test_going_on_from_an_export_keeps_its_head_and_the_order_of_its_labels(command, whole, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(whole / "export", start)
    fields = json.loads((start / "config.json").read_text())
    fields |= {"id2label": {"0": "with", "1": "out"}, "label2id": {"with": 0, "out": 1}}
    (start / "config.json").write_text(json.dumps(fields))
    at, folder = command.index("--model") + 1, tmp_path / "run"
    tested = ["--test-data", command[command.index("--eval.data") + 1]]
    assert go(folder, [*command[:at], str(start), *command[at + 1 :]], *tested, *STILL) == 0
    exported = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert exported["id2label"] == {"0": "with", "1": "out"}
    before, after = weights(start), weights(tmp_path / "run" / "export")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-6, rtol=0, err_msg=name)

    # The test data is what is held out: it gets the same answers and scores, under names of its own.
    for name in ("predictions.jsonl", "confusion.png"):
        assert (folder / f"test-{name}").exists()
    assert (folder / "test-predictions.jsonl").read_bytes() == (folder / "predictions.jsonl").read_bytes()
    scores = json.loads((folder / "scores.json").read_text())["mean"]
    assert {n: x for n, x in scores.items() if n[:5] == "eval/"} == {
        n.replace("test/", "eval/"): x for n, x in scores.items() if n[:5] == "test/"
    }


def test_another_task_from_an_export_in_windows_longer_than_its_positions(whole, tmp_path, capsys):
    paragraphs = [
        {
            "context": f"{'b c d e f g h ' * 3}a {letter}",
            "qas": [
                {"id": letter, "question": "a ?", "answers": [{"text": letter, "answer_start": 44}]},
                {"id": f"not {letter}", "question": "b ?", "is_impossible": True, "answers": []},
            ],
        }
        for letter in LETTERS
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    files = ["--data", str(tmp_path / "squad.json"), "--eval.data", str(tmp_path / "squad.json")]
    sizes = ["--batch-size", "8", "--max-length", "16", "--stride", "4"]
    start = tmp_path / "start"
    shutil.copytree(whole / "export", start)
    # A model for three classes: what it was for does not stay.
    fields = json.loads((start / "config.json").read_text()) | {"id2label": {str(i): f"c{i}" for i in range(3)}}
    fields["label2id"] = {f"c{i}": i for i in range(3)}
    (start / "config.json").write_text(json.dumps(fields))
    command = ["finetune", "--task", "question-answering", "--model", str(start), *files, *sizes, *STILL]
    assert go(tmp_path / "run", command) == 0
    assert "qa_outputs" in capsys.readouterr().out  # the new head is named
    predictions = lines(tmp_path / "run" / "predictions.jsonl")
    assert [row["id"] for row in predictions] == [name for letter in LETTERS for name in (letter, f"not {letter}")]
    assert not (tmp_path / "run" / "confusion.png").exists()
    (scores,) = json.loads((tmp_path / "run" / "scores.json").read_text())["seeds"].values()
    assert {"eval/exact_match", "eval/f1_answerable", "eval/f1_unanswerable", "eval/best_f1_threshold"} < {*scores}

    export = tmp_path / "run" / "export"
    fields = json.loads((export / "config.json").read_text())
    assert fields["max_position_embeddings"] == 16 and "id2label" not in fields and "problem_type" not in fields
    name = "bert.embeddings.position_embeddings.weight"
    before, after = weights(start)[name], weights(export)[name]
    assert before.shape[0] == POSITIONS and after.shape[0] == 16
    np.testing.assert_allclose(after[:POSITIONS], before, atol=1e-6, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BertForQuestionAnswering.from_pretrained(export)


# --- learning ----------------------------------------------------------------------------------------------------


def test_the_default_learns(tmp_path):
    """14 intents of requests whose values were never seen: chance is 1 of 14."""
    options = "--steps 36 --eval.every 36 --checkpoint.every 36 --max-length 8 --optimizer.learning-rate 2e-3"
    assert run(["finetune", *options.split(), "--mesh.fsdp", "8", "--run", str(tmp_path / "run")]) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["mean"]
    assert scores["eval/accuracy"] > 0.3 and scores["eval/loss"] < math.log(14) - 0.5
    assert len(lines(tmp_path / "run" / "predictions.jsonl")) == 406


def test_data_that_changed_is_named_though_its_steps_changed_too(command, tmp_path, capsys):
    (tmp_path / "train.tsv").write_text(table(40, 0))
    command = [*command]
    command[command.index("--data") + 1] = str(tmp_path / "train.tsv")
    at = command.index("--steps")
    command[at : at + 2] = ["--epochs", "0.4"]
    assert go(tmp_path / "run", command) == 0
    capsys.readouterr()
    (tmp_path / "train.tsv").write_text(table(80, 0))
    assert go(tmp_path / "run", command) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'train.tsv'} is not what it was" in error and "--steps" not in error


def test_a_file_on_two_sides_is_said(command, tmp_path, capsys):
    training = command[command.index("--data") + 1]
    (tmp_path / "copy.tsv").write_bytes(Path(training).read_bytes())
    assert go(tmp_path / "run", command, "--test-data", str(tmp_path / "copy.tsv"), "--steps", "1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"WARNING --test-data {tmp_path / 'copy.tsv'} is trained on too" in said
    assert "--eval.data" not in said
