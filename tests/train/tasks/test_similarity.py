"""Sentence vectors, from pairs with a score and from pairs that belong together."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import BertModel
from tests.bert_jax.folders import random_params
from tests.train.stored import write
from tests.train.tasks.tiny import CONFIG, batch_of, log_softmax, refusal, settings, tokens
from train.data.requests import requests
from train.tasks import TASKS, TaskObjective
from train.tasks.similarity import Similar


def task(**options):
    return TASKS["similarity"](settings(**options))


def unscored(**options):
    return task(label="", **options)


def similar(*triples):
    return [Similar(f"--data: a.tsv:{line}", *triple) for line, triple in enumerate(triples, 2)]


PAIRS = similar(("a b", "c", 1.0), ("d", "ex", 5.0), ("f", "g h", 2.0))

FORMS = {
    "a.tsv": "sentence1\tsentence2\tscore\na b\tc\t2.5\n",
    "a.csv.gz": 'sentence1,score,sentence2\na b,"2.5",c\n',
    "a.jsonl": '{"sentence1": "a b", "sentence2": "c", "score": 2.5}',
    "a.parquet": {"sentence1": ["a b"], "sentence2": ["c"], "score": [2.5]},
}


@pytest.mark.parametrize("name", FORMS)
def test_files_of_every_form(name, tmp_path):
    path = write(tmp_path / name, FORMS[name])
    assert [row[1:] for row in task().read(path, "--data", "train")] == [("a b", "c", 2.5)]
    assert [row[1:] for row in unscored().read(path, "--data", "train")] == [("a b", "c", None)]


def test_pairs_without_a_column_of_scores(tmp_path):
    path = write(tmp_path / "a.tsv", "one\ttwo\na\tb\n")
    (row,) = unscored(text="one", pair="two").read(path, "--data", "train")
    assert row == Similar(f"--data: {path}:2", "a", "b", None)
    message = refusal(task(text="one", pair="two").read, path, "--data", "train")
    assert message == f"--data: {path}:1 has no column 'score', which --columns.label names; it has one, two"
    path = write(tmp_path / "b.tsv", "sentence1\tsentence2\tscore\na\tb\t\n")
    assert refusal(task().read, path, "--data", "train").startswith(f"--data: {path}:2: the field of --columns.label")


def test_embedded_pairs():
    held_out = requests()[1]
    rows = task().embedded(held_out, "here")
    assert len(rows) == len(held_out) and {0 <= row.score <= 5 for row in rows} == {True}
    alike = unscored().embedded(held_out, "here")
    assert alike == [row._replace(score=None) for row in rows if row.score == 5] and alike
    assert task().texts(PAIRS[:1]) == ["a b", "c"]


def test_scores_go_from_their_range_in_training_to_0_to_1(tokenizer):
    made = task(max_length=4)
    assert made.labels(PAIRS, None) == {}
    found = made.features(PAIRS, tokenizer, CONFIG, training=True)
    assert [float(example["labels"]) for example in found.examples] == [0.0, 1.0, 0.25]
    assert tokens(found.examples[1]) == ["[CLS] d [SEP] [PAD]", "[CLS] e ##x [SEP]"]
    assert found.left_out == {"texts cut to --max-length": 0}
    (held_out,) = made.features(similar(("a b c", "d", 6.0)), tokenizer, CONFIG, training=False).examples
    assert held_out["labels"] == np.float32(1.25) and tokens(held_out)[0] == "[CLS] a b [SEP]"


def test_scores_that_are_all_equal():
    message = refusal(task().labels, similar(("a", "b", 2.0), ("c", "d", 2.0)), None)
    assert message == "--data: a.tsv:2: all scores are 2.0; scores that differ are needed"
    assert unscored().labels(similar(("a", "b", None)), None) == {}


# --- vectors and losses ------------------------------------------------------------------------------------------


def batch_for(made, tokenizer, filled=0, length=None):
    made.labels(PAIRS, None)
    return batch_of(made.features(PAIRS, tokenizer, CONFIG, training=True).examples, length, filled)


def test_vectors_are_the_mean_of_what_is_there_of_length_one(tokenizer):
    made, model = task(), BertModel(CONFIG)
    params = random_params(model)
    batch = batch_for(made, tokenizer, length=6)
    vectors = jax.jit(TaskObjective(model, made).apply)(params, batch)
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids).last_hidden_state)
    for row in range(2):
        for side in range(2):
            count = int(batch["attention_mask"][row, side].sum())
            mean = np.asarray(apply(batch["input_ids"][row, side, None, :count])[0], np.float64).mean(0)
            np.testing.assert_allclose(vectors[row, side], mean / np.linalg.norm(mean), atol=1e-5)


def vectors_of(rows, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, 2, 4))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def test_the_squared_error_of_cosines(tokenizer):
    made = task()
    batch, vectors = batch_for(made, tokenizer, filled=2), vectors_of(5)
    cosines = np.einsum("bd,bd->b", vectors[:, 0].astype(np.float64), vectors[:, 1])
    expected = np.sum((cosines[:3] - [0, 1, 0.25]) ** 2)
    np.testing.assert_allclose(made.sums(jnp.asarray(vectors), batch)["loss_per_row"], expected, rtol=1e-5)
    assert made.weights(batch) == {"loss_per_row": 3.0}


def test_a_text_finds_its_pair_among_those_that_count(tokenizer):
    made = unscored()
    batch, vectors = batch_for(made, tokenizer, filled=2), vectors_of(5)
    logs = log_softmax(20 * vectors[:3, 0].astype(np.float64) @ vectors[:3, 1].T)
    np.testing.assert_allclose(made.sums(jnp.asarray(vectors), batch)["loss_per_row"], -np.trace(logs), rtol=1e-5)


# --- answers -----------------------------------------------------------------------------------------------------


def outputs_of(vectors):
    return [{"vectors": pair} for pair in vectors]


def test_cosines_and_their_correlation():
    vectors = np.array([[[1, 0], [0, 1]], [[1, 0], [1, 0]], [[1, 0], [0.6, 0.8]]], np.float32)
    answers = task().answers(PAIRS, None, outputs_of(vectors), CONFIG)
    assert [answer["cosine"] for answer in answers] == pytest.approx([0, 1, 0.6])
    assert answers[0]["score"] == 1.0 and "rank" not in answers[0] and json.dumps(answers)
    scores = task().scores(PAIRS, answers, CONFIG)
    assert scores["eval/spearman"] == pytest.approx(1.0)
    assert scores["eval/pearson"] == pytest.approx(np.corrcoef([0, 1, 0.6], [1, 5, 2])[0, 1])
    assert task().best == ("eval/spearman", "max") and unscored().best == ("eval/recall_at_1", "max")


def test_ranks_count_what_is_nearer_than_the_own_pair():
    first = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    second = np.array([[0.6, 0.8], [0.8, 0.6], [-1, 0]], np.float32)
    answers = unscored().answers(PAIRS, None, outputs_of(np.stack([first, second], 1)), CONFIG)
    assert [answer["rank"] for answer in answers] == [2, 1, 3] and "score" not in answers[0]
    assert unscored().scores(PAIRS, answers, CONFIG) == {"eval/recall_at_1": pytest.approx(1 / 3)}


def test_the_nearest_is_the_first_however_products_are_rounded():
    for seed in range(20):
        first = np.random.default_rng(seed).normal(size=(7, 384)).astype(np.float32)
        first /= np.linalg.norm(first, axis=-1, keepdims=True)
        rows, outputs = similar(*[("a", "b", None)] * 7), outputs_of(np.stack([first, first], 1))
        answers = unscored().answers(rows, None, outputs, CONFIG)
        assert [answer["rank"] for answer in answers] == [1] * 7


def test_the_files_say_how_texts_become_vectors():
    files = task(max_length=7).files(CONFIG)
    assert json.loads(files["sentence_bert_config.json"])["max_seq_length"] == 7
    assert [module["type"].split(".")[-1] for module in json.loads(files["modules.json"])] == [
        "Transformer", "Pooling", "Normalize",
    ]  # fmt: skip
    pooling = json.loads(files["1_Pooling/config.json"])
    assert pooling["pooling_mode_mean_tokens"] and pooling["word_embedding_dimension"] == CONFIG.hidden_size
