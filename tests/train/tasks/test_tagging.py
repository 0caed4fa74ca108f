"""A tag for each word, alone and beside an intent."""

import json
from types import SimpleNamespace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from bert_jax.heads import JointOutput, LogitsOutput
from tests.train.stored import StoredRows, store, write
from tests.train.tasks.tiny import batch_of, log_softmax, refusal, settings, tokens
from train.data.conll import Tagged
from train.data.requests import Request
from train.tasks import TASKS
from train.tasks.joint import Joined

NAMES = ("O", "B-p", "I-p", "B-q", "I-q")


def tagging(**options):
    return TASKS["tagging"](settings(**options))


def joint(**options):
    return TASKS["joint"](settings(**options))


def tagged(*pairs):
    """Sentences of (words, tags), each between blanks."""
    return [Tagged(f"--data: a.conll:{i}", words.split(), tags.split()) for i, (words, tags) in enumerate(pairs, 1)]


def joined(*triples):
    return [Joined(*tagged((words, tags))[0], intent) for words, tags, intent in triples]


# --- what is read ------------------------------------------------------------------------------------------------

WORDS, TAGS = [["a", "bx"], ["c"]], [["B-p", "I-p"], ["O"]]
FORMS = {
    "a.conll": "a B-p\nbx I-p\n\nc O\n",
    "a.conll.gz": "a\tB-p\nbx\tI-p\n\nc\tO\n",
    "a.tsv": "tokens\ttags\tintent\na bx\tB-p I-p\tx\nc\tO\ty\n",
    "a.csv": "tokens,tags,intent\na bx,B-p I-p,x\nc,O,y\n",
    "a.jsonl": '{"tokens": ["a", "bx"], "tags": "B-p I-p", "intent": "x"}\n'
    '{"tokens": "c", "tags": ["O"], "intent": "y"}\n',
    "a.parquet": {"tokens": WORDS, "tags": TAGS, "intent": ["x", "y"]},
}


@pytest.mark.parametrize("name", FORMS)
def test_files_of_every_form(name, tmp_path):
    path = write(tmp_path / name, FORMS[name])
    read = tagging().read(path, "--data", "train")
    assert [row.tokens for row in read] == WORDS and [row.tags for row in read] == TAGS
    assert all(row.place.startswith(f"--data: {path}:") for row in read)
    if "conll" not in name:
        assert [row[1:] for row in joint().read(path, "--data", "train")] == [
            (*row[1:], i) for row, i in zip(read, "xy", strict=True)
        ]


def test_columns_by_name_and_tfds(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", '{"w": ["a"], "t": ["O"], "i": true}')
    assert joint(tokens="w", tags="t", label="i").read(path, "--data", "train")[0][1:] == (["a"], ["O"], "true")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    class TinyTags(StoredRows):
        FEATURES: ClassVar = {
            "tokens": tfds.features.Sequence(tfds.features.Text()),
            "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-p"])),
        }

    store(TinyTags(data_dir=tmp_path, file_format="array_record"), {"train": [{"tokens": ["a", "b"], "ner": [1, 0]}]})
    assert tagging(tags="ner").read("tfds:tiny_tags", "--data", "train")[0][1:] == (["a", "b"], ["B-p", "O"])


def test_embedded_rows():
    request = Request("wake me at 7", "set_alarm", ["wake", "me", "at", "7"], ["O", "O", "O", "B-time"])
    assert tagging().embedded([request], "here") == [Tagged("here", request.tokens, request.tags)]
    assert joint().embedded([request], "here") == [Joined("here", request.tokens, request.tags, "set_alarm")]
    assert tagging().texts(tagged(("a bx", "O O"))) == ["a bx"] == joint().texts(joined(("a bx", "O O", "y")))


# --- labels ------------------------------------------------------------------------------------------------------


def test_the_order_of_tags():
    rows = tagged(("a b c", "B-q O B-p"))
    assert tagging().labels(rows, None) == {"id2label": NAMES}
    other = ("B-q", "I-q", "O", "I-p", "B-p")
    assert tagging().labels(rows, SimpleNamespace(id2label=other)) == {"id2label": other}
    assert tagging().labels(rows, SimpleNamespace(id2label=other[1:])) == {"id2label": NAMES}
    both = joined(("a b c", "B-q O B-p", "y"), ("a", "O", "x"))
    assert joint().labels(both, None) == {"id2label": ("x", "y"), "slot_labels": NAMES}
    start = SimpleNamespace(id2label=("y", "x"), slot_labels=other)
    assert joint().labels(both, start) == {"id2label": ("y", "x"), "slot_labels": other}


def test_labels_that_teach_nothing():
    message = refusal(tagging().labels, tagged(("a b", "O O"), ("c", "O")), None)
    assert message == "--data: a.conll:1: all tags are O; names are needed, the first word of each tagged B-TYPE"
    assert refusal(joint().labels, joined(("a b", "O O", "x"), ("c", "O", "y")), None) == message
    message = refusal(joint().labels, joined(("a b", "O B-p", "x"), ("c", "O", "x")), None)
    assert message == "--data: a.conll:1: all labels are 'x'; two classes are needed"


def test_an_intent_that_is_not_there(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"tokens": "a", "tags": "O", "intent": null}')
    assert (
        refusal(joint().read, path, "--data", "train") == f"--data: {path}:1: there is no intent in the column 'intent'"
    )
    path = write(tmp_path / "b.jsonl", '{"tokens": "a", "tags": "I-p", "intent": "x"}')
    assert refusal(joint().read, path, "--data", "train").startswith(f"--data: {path}:1: token 0: 'I-p' follows 'O'")


# --- features ----------------------------------------------------------------------------------------------------


def test_the_first_piece_of_each_word_has_its_tag(tokenizer):
    rows = tagged(("ax b a?b cdx", "B-p I-p O B-q"), ("\x7f b", "B-p O"))
    features = tagging(max_length=32).features(rows, tokenizer, SimpleNamespace(id2label=NAMES), training=True)
    first, second = features.examples
    assert tokens(first) == "[CLS] a ##x b a ? b c ##d ##x [SEP]"
    assert first["tags"].tolist() == [-100, 1, -100, 2, 0, -100, -100, 3, -100, -100, -100]
    assert features.sources[0] == {0: 1, 1: 3, 2: 4, 3: 7}
    # A word of nothing that the model reads has no tag.
    assert tokens(second) == "[CLS] b [SEP]" and second["tags"].tolist() == [-100, 0, -100]
    assert list(features.left_out.values()) == [1]


def test_words_behind_the_greatest_length(tokenizer):
    rows = tagged(("ax b cx d", "B-p I-p I-p O"))
    features = tagging(max_length=6).features(rows, tokenizer, SimpleNamespace(id2label=NAMES), training=False)
    (example,) = features.examples
    assert tokens(example) == "[CLS] a ##x b c [SEP]" and example["tags"].tolist() == [-100, 1, -100, 2, 2, -100]
    assert features.left_out == {"words behind --max-length, or of no character that the model reads": 1}
    made, config = tagging(max_length=6), SimpleNamespace(id2label=NAMES)
    outputs = [{"tags": np.array([1, 1, 1, 2, 2, 1, 4, 4])}]
    (answer,) = made.answers(rows, features, outputs, config)
    assert answer == {"tokens": ["ax", "b", "cx", "d"], "tags": rows[0].tags, "predicted": ["B-p", "I-p", "I-p", "O"]}


def test_a_tag_that_training_lacks_is_named_wherever_it_stands(tokenizer):
    config = SimpleNamespace(id2label=("x",), slot_labels=("O", "B-p", "I-p"))
    for words, tags in (("a b", "O B-q"), ("a b c d e f g h i j", "O " * 9 + "B-q")):
        message = refusal(joint(max_length=6).features, joined((words, tags, "x")), tokenizer, config, training=False)
        assert message.startswith("--data: a.conll:1: the tag 'B-q' is none that training has: O, B-p, I-p")
    message = refusal(joint().features, joined(("a", "O", "z")), tokenizer, config, training=False)
    assert message.startswith("--data: a.conll:1: the intent 'z' is none that training has: x")


# --- losses ------------------------------------------------------------------------------------------------------


def test_losses_are_of_the_first_pieces_of_rows_that_count(tokenizer):
    rows = joined(("ax b", "B-p O", "x"), ("c", "B-q", "y"), ("\x7f", "O", "x"))
    config = SimpleNamespace(id2label=("x", "y"), slot_labels=NAMES)
    features = joint().features(rows, tokenizer, config, training=True)
    batch = batch_of(features.examples, length=7, filled=2)
    rng = np.random.default_rng(0)
    slots, intents = (rng.normal(0, 2, shape).astype(np.float32) for shape in ((5, 7, 5), (5, 2)))
    logs = log_softmax(slots)
    slot_loss = -(logs[0, 1, 1] + logs[0, 3, 0] + logs[1, 1, 3])
    intent_loss = -log_softmax(intents)[[0, 1, 2], [0, 1, 0]].sum()
    sums = joint().sums(JointOutput(jnp.asarray(intents), jnp.asarray(slots)), batch)
    np.testing.assert_allclose([sums["intent_loss"], sums["slot_loss"]], [intent_loss, slot_loss], rtol=1e-5)
    assert joint().weights(batch) == {"intent_loss": 3.0, "slot_loss": 3.0}
    alone = tagging()
    np.testing.assert_allclose(
        alone.sums(LogitsOutput(jnp.asarray(slots)), batch)["loss_per_word"], slot_loss, rtol=1e-5
    )
    assert alone.weights(batch) == {"loss_per_word": 3.0}


# --- answers and scores ------------------------------------------------------------------------------------------


def test_answers_and_scores(tokenizer):
    rows = joined(("a b c", "B-p I-p O", "x"), ("d", "B-q", "y"))
    config = SimpleNamespace(id2label=("x", "y"), slot_labels=NAMES)
    features = joint().features(rows, tokenizer, config, training=False)
    found = [np.array([0, 1, 2, 0, 0]), np.array([0, 0, 4])]
    outputs = [{"intent": np.array(i), "tags": tags} for i, tags in zip(([0.25, 0.75], [0.0, 1.0]), found, strict=True)]
    answers = joint().answers(rows, features, outputs, config)
    assert answers[0] == {
        "tokens": ["a", "b", "c"], "intent": "x", "tags": ["B-p", "I-p", "O"],
        "predicted_intent": "y", "predicted_tags": ["B-p", "I-p", "O"],
    }  # fmt: skip
    assert joint().scores(rows, answers, config) == pytest.approx(
        {"eval/intent_accuracy": 0.5, "eval/slot_f1": 2 / 3, "eval/sentence_accuracy": 0.0}
    )
    names, counts = joint().confusion(rows, answers, config)
    assert names == ["x", "y"] and counts.tolist() == [[0, 1], [0, 1]]

    alone, config = tagging(), SimpleNamespace(id2label=NAMES)
    sentences = [Tagged(*row[:3]) for row in rows]
    answers = alone.answers(sentences, features, outputs, config)
    assert json.dumps(answers) and [answer["predicted"] for answer in answers] == [["B-p", "I-p", "O"], ["O"]]
    assert alone.scores(sentences, answers, config) == pytest.approx(
        {"eval/precision": 1.0, "eval/recall": 0.5, "eval/f1": 2 / 3}
    )
    names, counts = alone.confusion(sentences, answers, config)
    assert names == ["O", "p", "q"] and counts.tolist() == [[1, 0, 0], [0, 2, 0], [1, 0, 0]]


def test_a_model_without_o_is_drawn_with_the_words_that_it_did_not_read(tokenizer):
    rows, config = tagged(("a b c d e f g", "B-p " * 7)), SimpleNamespace(id2label=("B-p", "I-p"))
    made = tagging(max_length=5)
    features = made.features(rows, tokenizer, config, training=False)
    answers = made.answers(rows, features, [{"tags": np.zeros(5, int)}], config)
    names, counts = made.confusion(rows, answers, config)
    assert names == ["O", "p"] and counts.tolist() == [[0, 0], [4, 3]]
