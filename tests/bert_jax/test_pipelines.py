"""TextClassifier, TokenTagger, QuestionAnswerer: what they say is what the model says of each text alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import (
    Answer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    Entity,
    QuestionAnswerer,
    TextClassifier,
    TextError,
    TextsCut,
    TokenTagger,
)
from bert_jax.pipelines.tag import _entities, _Word
from tests.bert_jax.folders import WORDS, small_model, small_tokenizer

TEXTS = ["the cat sat", "", "Dogs ran over  green hills, while", "mat!", "unknown 東 a the"]
LABELS = ("O", "B-cat", "I-cat", "B-hill", "I-hill")
LONGEST = 32


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer(" , !")


@pytest.fixture(scope="module")
def make(tokenizer):
    """A small model of a class, with parameters drawn by chance."""

    def make(model_class, **fields):
        return small_model(model_class, tokenizer, max_position_embeddings=LONGEST, **fields)

    return make


@functools.cache
def applied(model):
    return jax.jit(model.apply)


def logits_of(pipeline, encoding):
    """The model's output for one row alone."""
    batch = pipeline.tokenizer.pad([encoding], LONGEST)
    out = applied(pipeline.model)({"params": pipeline.params}, **batch)
    return jax.tree.map(lambda x: np.asarray(x)[0, : len(encoding) if x.shape[1] == LONGEST else None], out)


# --- classes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(make, tokenizer):
    model, params = make(BertForSequenceClassification, id2label=("bad", "fair", "good"))
    return TextClassifier(model, params, tokenizer)


def retold(pipeline, **fields):
    """The same model with another configuration."""
    config = dataclasses.replace(pipeline.model.config, **fields)
    return dataclasses.replace(pipeline, model=pipeline.model.clone(config=config))


def test_one_class(classifier):
    for text, labels in zip(TEXTS, classifier(TEXTS), strict=True):
        logits = logits_of(classifier, classifier.tokenizer.encode([text])[0]).logits
        probabilities = np.exp(logits) / np.exp(logits).sum()
        assert [label for label, _ in labels] == [("bad", "fair", "good")[i] for i in np.argsort(-probabilities)]
        np.testing.assert_allclose([p for _, p in labels], np.sort(probabilities)[::-1], rtol=1e-5)
        assert all(type(p) is float for _, p in labels)


def test_several_classes(classifier):
    several = retold(classifier, problem_type="multi_label_classification")
    for text, labels in zip(TEXTS, several(TEXTS), strict=True):
        logits = logits_of(classifier, classifier.tokenizer.encode([text])[0]).logits
        expected = dict(zip(("bad", "fair", "good"), 1 / (1 + np.exp(-logits)), strict=True))
        assert {label: pytest.approx(p, rel=1e-5) for label, p in labels} == expected
        assert [p for _, p in labels] == sorted((p for _, p in labels), reverse=True)


def test_numbers(classifier, make, tokenizer):
    model, params = make(BertForSequenceClassification, id2label=("score",))
    single = TextClassifier(model, params, tokenizer)
    logits = [logits_of(single, encoding).logits[0] for encoding in tokenizer.encode(TEXTS)]
    np.testing.assert_allclose(single(TEXTS), logits, rtol=1e-5)
    three = retold(classifier, problem_type="regression")(TEXTS[:1])[0]
    expected = logits_of(classifier, tokenizer.encode(TEXTS[:1])[0]).logits
    assert [label for label, _ in three] == ["bad", "fair", "good"]
    np.testing.assert_allclose([value for _, value in three], expected, rtol=1e-5)


def test_pairs(classifier):
    pairs = ["dogs", "a mat", "", "green", "the"]
    together = classifier(TEXTS, pairs)
    for text, other, labels in zip(TEXTS, pairs, together, strict=True):
        logits = logits_of(classifier, classifier.tokenizer.encode([text], [other])[0]).logits
        assert labels[0][0] == ("bad", "fair", "good")[np.argmax(logits)]
    assert together != classifier(TEXTS)
    with pytest.raises(ValueError, match="5 texts, but 1 pairs"):
        classifier(TEXTS, ["a"])
    with pytest.warns(TextsCut, match="the first 32 tokens are read: the end of texts 1 is left out") as caught:
        classifier(["a", "cat"], ["the", "mat " * 40])
    assert caught[0].filename == __file__


def test_folders(classifier, tmp_path):
    classifier.model.save_pretrained(tmp_path, classifier.params)
    classifier.tokenizer.save_pretrained(tmp_path)
    assert TextClassifier.from_pretrained(tmp_path)(TEXTS) == classifier(TEXTS)
    BertTokenizer.train([" ".join(WORDS) + " more words than the model was made for"] * 3, 150).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer has .* tokens, but the model was made for"):
        TextClassifier.from_pretrained(tmp_path)


# --- tags --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagger(make, tokenizer):
    model, params = make(BertForTokenClassification, id2label=LABELS)
    return TokenTagger(model, params, tokenizer)


def words_of(tagger, encoding):
    """{word id: (tag, its probability)} by the first token of each word."""
    logits = logits_of(tagger, encoding).logits
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    out = {}
    for row, word in zip(probabilities, encoding.word_ids, strict=True):
        if word is not None:
            out.setdefault(word, (LABELS[row.argmax()], row.max()))
    return out


def test_entities_are_those_of_the_tags(tagger):
    entities = tagger(TEXTS)
    assert sum(map(len, entities)) > 5
    for text, found, encoding in zip(TEXTS, entities, tagger.tokenizer.encode(TEXTS), strict=True):
        words = words_of(tagger, encoding)
        covered = set()
        for entity in found:
            assert entity.text == text[entity.start : entity.end] != ""
            inside = sorted(
                {
                    word
                    for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True)
                    if word is not None and entity.start <= start and end <= entity.end
                }
            )
            assert {words[word][0][2:] for word in inside} == {entity.label}
            assert all(words[word][0].startswith("I-") for word in inside[1:])
            assert entity.score == pytest.approx(np.mean([words[word][1] for word in inside]), rel=1e-5)
            covered |= set(inside)
        assert covered == {word for word, (tag, _) in words.items() if tag != "O"}


def test_tags_of_given_words(tagger):
    sentences = [["the", "cat,", "sat"], [], ["", "dogs", "\u200b"], ["unknown-word"] * 3]
    for sentence, tags, encoding in zip(
        sentences, tagger.tags(sentences), tagger.tokenizer.encode_words(sentences), strict=True
    ):
        words = words_of(tagger, encoding)
        assert tags == [words.get(index, ("O",))[0] for index in range(len(sentence))]
    with pytest.warns(TextsCut, match="the end of texts 1 is left out") as caught:
        tags = tagger.tags([["cat"], ["cat"] * 40])
    assert caught[0].filename == __file__
    assert [len(row) for row in tags] == [1, 40] and set(tags[1][30:]) == {"O"}
    with pytest.raises(ValueError, match="sentences must be a list of lists of words"):
        tagger.tags("the cat")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-x", [("x", "0")]),
        ("B-x I-x O I-x", [("x", "0 1"), ("x", "3")]),
        ("I-x I-y I-y", [("x", "0"), ("y", "1 2")]),
        ("B-x B-x I-x", [("x", "0"), ("x", "1 2")]),
        ("O B-x I-y B-y", [("x", "1"), ("y", "2"), ("y", "3")]),
        ("x x O y x", [("x", "0 1"), ("y", "3"), ("x", "4")]),
        ("B-B-x I-B-x", [("B-x", "0 1")]),
    ],
)
def test_grouping(tags, expected):
    tags = tags.split()
    text = " ".join(map(str, range(len(tags))))
    words = [_Word(tag, (i + 1) / 8, 2 * i, 2 * i + 1) for i, tag in enumerate(tags)]
    found = list(_entities(text, words))
    assert [(entity.label, entity.text) for entity in found] == expected
    for entity in found:
        numbers = [int(number) for number in entity.text.split()]
        assert entity == Entity(
            entity.label, entity.text, 2 * numbers[0], 2 * numbers[-1] + 1, np.mean([(i + 1) / 8 for i in numbers])
        )


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answerer(make, tokenizer):
    model, params = make(BertForQuestionAnswering)
    return QuestionAnswerer(model, params, tokenizer, max_length=20, stride=4)


QUESTIONS = ["the cat", "dogs!", "", "a mat"]
CONTEXTS = ["Dogs ran over  green hills, while the cat sat on a mat. " * 3, "mat 東京 unknown", "the cat", ""]


@pytest.mark.parametrize(("top_k", "longest"), [(1, 30), (4, 3), (500, 2)])
def test_answers_are_the_best_spans_of_all_windows(answerer, top_k, longest):
    for question, context, answers in zip(
        QUESTIONS, CONTEXTS, answerer(QUESTIONS, CONTEXTS, top_k, longest), strict=True
    ):
        scores, null = {}, []
        windows = answerer.tokenizer.encode_windows(question, context, 20, 4)
        for window in windows:
            out = logits_of(answerer, window)
            null.append(out.start_logits[0] + out.end_logits[0])
            inside = [i for i, sequence in enumerate(window.sequence_ids) if sequence == 1]
            for i in inside:
                for j in inside:
                    if 0 <= j - i < longest:
                        place = window.offsets[i][0], window.offsets[j][1]
                        score = out.start_logits[i] + out.end_logits[j]
                        scores[place] = max(score, scores.get(place, score))
        assert (len(windows) > 3) is (context == CONTEXTS[0])
        assert answers.null_score == pytest.approx(min(null), rel=1e-4)
        expected = sorted(scores.values(), reverse=True)[:top_k]
        np.testing.assert_allclose([answer.score for answer in answers.best], expected, rtol=1e-4)
        for answer in answers.best:
            assert answer == Answer(context[answer.start : answer.end], answer.start, answer.end, answer.score)
            assert scores[answer.start, answer.end] == pytest.approx(answer.score, rel=1e-4)
        assert len({(answer.start, answer.end) for answer in answers.best}) == len(answers.best)


def test_a_long_question_leaves_less_to_share(answerer):
    question = "the cat sat on a mat while dogs ran over green hills the cat"
    tokens = len(answerer.tokenizer.encode([question])[0])
    assert 20 - 1 - tokens < 2 * answerer.stride
    (answers,) = answerer([question], [CONTEXTS[0]])
    assert answers.best[0].text in CONTEXTS[0]
    with pytest.raises(
        TextError, match=r"questions\[1\] has 40 tokens, which leaves none of 20 for the context"
    ) as caught:
        answerer(["a", "cat " * 40], ["mat", "mat"])
    assert caught.value.index == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", ["b"]), "questions must be a list of texts"),
        ((["a"], "b"), "contexts must be a list of texts"),
        (([], []), "questions is empty"),
        ((["a"], ["b", "c"]), "1 questions, but 2 contexts"),
        ((["a"], ["b"], 0), "top_k must be an integer from 1"),
        ((["a"], ["b"], 1, 0), "max_answer_length must be an integer from 1"),
    ],
)
def test_questions_are_refused(answerer, arguments, words):
    with pytest.raises(ValueError, match=words):
        answerer(*arguments)


def test_windows_are_no_longer_than_the_model_reads(answerer):
    assert dataclasses.replace(answerer, max_length=500).longest == LONGEST
    for fields, words in (({"max_length": 0}, "max_length must be an integer"), ({"stride": -1}, "stride must be")):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(answerer, **fields)


# --- what all of them share --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classifier", "tagger"])
def test_order_does_not_depend_on_batches(name, request):
    pipeline = request.getfixturevalue(name)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 25))) for _ in range(20)]
    for one, other in zip(pipeline(texts, batch_size=3), pipeline(texts), strict=True):
        labels = [[entry[0] for entry in answer] for answer in (one, other)]
        assert labels[0] == labels[1]


@pytest.mark.parametrize("name", ["classifier", "tagger", "answerer"])
def test_answers_that_are_no_numbers_are_refused(name, request):
    pipeline = request.getfixturevalue(name)
    broken = dataclasses.replace(pipeline, params=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), pipeline.params))
    with pytest.raises(ValueError, match="answers are not finite"):
        broken(["cat"], ["mat"]) if name == "answerer" else broken(["cat"])
