"""Both jobs from end to end on small data: what they say, what they leave behind, and going on from it."""

import json
import re
import types

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bert_jax import BertConfig, BertForMaskedLM, BertTokenizer, warm_start
from train import storage
from train.__main__ import run
from train.checkpoint import Checkpoints
from train.pretrain import PretrainConfig, make_model
from train.translate import learning_rate_of
from train.translate_start import load_start
from transformer_jax import Translator
from transformer_jax.tokenizer import serialized

FEW = ["--steps", "2", "--eval.every", "1", "--checkpoint.every", "1", "--optimizer.warmup-steps", "1"]
SHORT = [*FEW, "--batch-size", "8", "--max-length", "16"]
NUMBERS = ["one", "two", "six", "ten"]
BOOK = "\n".join(f"It was the {n} day of the {n} month. They spoke of {n} things." for n in NUMBERS)


def weights(folder):
    return safetensors.numpy.load_file(folder / "export" / "model.safetensors")


def go(folder, *command):
    """The job on all 8 devices."""
    return run([*command, "--run", str(folder)])


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A run on one book alone."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "book.txt").write_text(BOOK)
    command = ["pretrain", "--data", str(folder / "book.txt"), "--vocab-size", "80", *SHORT, "--optimizer.ema", "0.9"]
    assert go(folder / "run", *command) == 0
    return folder, command


def test_one_book_alone_trains_without_next_sentences(book, capsys):
    folder, command = book
    assert go(folder / "run", *command) == 0  # nothing left to do but to say it all again
    said = capsys.readouterr().out
    assert "next sentence" in said and "both sides need two documents" in said
    assert "held out" in said and "vocabulary" in said and "examples" in said
    assert json.loads((folder / "run" / "export" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert (folder / "run" / "tokenizer" / "vocab.txt").exists()


def test_the_average_of_parameters_is_exported(book, monkeypatch):
    folder, _ = book
    with Checkpoints(folder / "run" / "checkpoints", keep_latest=2) as checkpoints:
        one, two = (
            flax.traverse_util.flatten_dict(checkpoints.restore_params(step), sep=".") for step in checkpoints.steps()
        )
    exported = weights(folder / "run")["bert.encoder.layer.0.intermediate.dense.weight"]
    name = "bert.encoder.layer_0.mlp.up.kernel"
    np.testing.assert_array_equal(exported.T, two[name])
    assert (one[name] != two[name]).any()
    monkeypatch.setattr(storage, "Averaged", types.SimpleNamespace(_fields=()))  # the parameters themselves
    raw = flax.traverse_util.flatten_dict(storage.load_params(folder / "run" / "checkpoints" / "2"), sep=".")
    assert (raw[name] != two[name]).any()


def test_positions_of_a_new_model_begin_as_large_sinusoids(book):
    folder, _ = book
    tokenizer = BertTokenizer.from_pretrained(folder / "run" / "export")
    model, params, _ = make_model(PretrainConfig(), None, tokenizer, True)
    assert params is None and model.config.position_range == 10 * model.config.initializer_range
    table = model.initial_parameters(["embeddings"])["bert/embeddings/position/embedding"]
    assert np.sqrt(np.mean(table**2)) == pytest.approx(model.config.position_range, rel=1e-5)
    assert "position_range" not in json.loads((folder / "run" / "export" / "config.json").read_text())


def test_a_new_run_starts_from_the_export_of_another(book, tmp_path, capsys):
    folder, _ = book
    still = ["--optimizer.name", "adamw", "--optimizer.learning-rate", "1e-12"]
    command = [
        "pretrain",
        "--data",
        str(folder / "book.txt"),
        "--model",
        str(folder / "run" / "export"),
        *SHORT,
        *still,
    ]
    assert go(tmp_path / "run", *command) == 0
    assert "words of" in capsys.readouterr().out
    before, after = weights(folder / "run"), weights(tmp_path / "run")
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-6, rtol=0, err_msg=name)


def test_data_that_changed_is_refused(book, capsys):
    folder, command = book
    (folder / "book.txt").write_text(BOOK.replace("month", "year"))
    assert go(folder / "run", *command) == 2
    error = capsys.readouterr().err
    assert "book.txt" in error and "is not what it was" in error and error.count("\n") == 1
    (folder / "book.txt").write_text(BOOK)


def test_a_diverging_run_stops_with_its_own_code_and_exports_nothing(book, tmp_path, capsys):
    _, command = book
    ruin = "--optimizer.name adamw --optimizer.learning-rate 1e38 --optimizer.clip-norm 0 --max-bad-steps 2 --steps 9"
    assert go(tmp_path / "run", *command, *ruin.split()) == 3
    error = capsys.readouterr().err
    assert "training diverged" in error and "batch" in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "export").exists()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    words = [f"w{i}" for i in range(9)]
    rows = [f"{words[i % 9]} {words[i // 9 % 9]}\t{words[i // 9 % 9]} {words[i % 9]}" for i in range(60)]
    long = [f"{' '.join(words * 4)} {i}\t{' '.join(words * 4)}" for i in range(5)]
    (folder / "pairs.tsv").write_text("\n".join([*rows, *long, rows[3]]) + "\n")
    options = [
        "--vocab-size",
        "14",
        "--held-out",
        "20",
        "--bleu-sentences",
        "4",
        "--average",
        "1",
        "--label-smoothing",
        "0",
    ]
    sizes = ["--batch-size", "128", "--max-length", "16"]
    command = ["translate", "--data", str(folder / "pairs.tsv"), *options, *sizes, *FEW]
    assert go(folder / "run", *command) == 0
    return folder, command


def test_what_translation_leaves_out_is_said(pairs, capsys):
    folder, command = pairs
    assert go(folder / "run", *command) == 0
    said = capsys.readouterr().out
    assert "66 pairs" in said and "pairs longer than --max-length 16" in said
    assert "20 pairs" in said and "greedy BLEU on 4" in said and "14 pieces" in said
    assert (folder / "run" / "tokenizer" / "spm.model").exists()
    assert (folder / "run" / "export" / "spm.model").read_bytes() == (
        folder / "run" / "tokenizer" / "spm.model"
    ).read_bytes()


def test_a_translation_that_ends_early_exports_what_was_best(pairs, tmp_path, capsys):
    _, command = pairs
    many = ["--steps", "400", "--average", "2", "--checkpoint.keep", "2", "--optimizer.learning-rate", "1e-30"]
    judged = ["--eval.patience", "2", "--best", "bleu", "--optimizer.ema", "0.5"]
    assert go(tmp_path / "run", *command, *many, *judged) == 0
    said = capsys.readouterr().out
    (ended,) = re.findall(r"ends at step (\d+): eval/bleu", said)
    assert ended == "3" and "average of the checkpoints at steps 1 (1 of --average 2);" in said  # all are as good
    with Checkpoints(tmp_path / "run" / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        average = flax.traverse_util.flatten_dict(checkpoints.restore_params(1), sep=".")
    for name, tensor in weights(tmp_path / "run").items():
        np.testing.assert_array_equal(tensor, average[name], err_msg=name)


def test_translation_goes_on_from_an_export(pairs, tmp_path):
    folder, command = pairs
    at = command.index("--vocab-size")
    command = [*command[:at], *command[at + 2 :], "--model", str(folder / "run" / "export")]
    assert go(tmp_path / "run", *command, "--optimizer.learning-rate", "1e-12") == 0
    before, after = weights(folder / "run"), weights(tmp_path / "run")
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-6, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT with vocab.txt alone, in small letters."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = BertTokenizer.train([f"w{i} w{i}" for i in range(9)] * 3, 40)
    config = BertConfig.tiny(vocab_size=40, hidden_size=16, intermediate_size=24, max_position_embeddings=80)
    model = BertForMaskedLM(config)
    model.save_pretrained(folder, model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    return folder


def test_translation_has_no_more_tokens_than_a_bert_has_positions(pairs, bert, tmp_path, capsys):
    data = str(pairs[0] / "pairs.tsv")
    assert go(tmp_path, "translate", "--data", data, "--held-out", "9", "--model", str(bert), "--max-length", "81") == 2
    error = capsys.readouterr().err
    assert "--max-length 81" in error and "80 learned positions" in error and error.count("\n") == 1


def test_translation_starts_from_a_bert_and_its_vocabulary(pairs, bert, tmp_path, capsys):
    folder, command = pairs
    at = command.index("--vocab-size")
    (tmp_path / "pairs.tsv").write_text((folder / "pairs.tsv").read_text().replace("w3", "W3"))
    command = [*command[:at], *command[at + 2 :], "--model", str(bert)]
    command[command.index("--data") + 1] = str(tmp_path / "pairs.tsv")
    assert go(tmp_path / "run", *command, "--optimizer.learning-rate", "1e-12") == 0
    said = capsys.readouterr().out
    assert f"pieces of {bert}" in said and "BLEU" in said
    assert "of 20 held-out targets are not spelled" in said
    for name in ("tokenizer", "export"):
        assert [path.name for path in (tmp_path / "run" / name).glob("*token*")] == ["tokenizer.json"]
    _, started = warm_start(bert)
    translator = Translator.from_pretrained(tmp_path / "run" / "export", num_beams=1, batch_size=2, max_length=16)
    for name, leaf in flax.traverse_util.flatten_dict(started, sep=".").items():
        np.testing.assert_allclose(weights(tmp_path / "run")[name], leaf, atol=1e-6, rtol=0, err_msg=name)
    assert len(translator(["w1 W2", "w3"])) == 2
    assert translator.tokenizer.decode(translator.tokenizer.encode("w1 W2")) == "w1 w2"
    # Its export is gone on from with the same vocabulary, as slowly as a BERT.
    start = load_start(str(tmp_path / "run" / "export"), seed=0)
    assert serialized(start.processor) == (tmp_path / "run/export/tokenizer.json").read_bytes()
    assert learning_rate_of(start.model.config) == "bert"
