"""`python -m bert_jax`: a line in, a line out, and one line where something is wrong."""

import contextlib
import functools
import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from bert_jax import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    FillMask,
    QuestionAnswerer,
    TextClassifier,
    TextEmbedder,
    TokenTagger,
)
from bert_jax.jobs import JOBS
from tests.bert_jax.folders import save_small, small_tokenizer
from transformer_jax import lines as program

TEXTS = ["the cat sat", "dogs ran over  green hills, while", "mat!", "東京 É \u2028 the\x0b!", "a"]
MODELS = {
    "fill-mask": (BertForMaskedLM, {}),
    "embed": (BertModel, {}),
    "classify": (BertForSequenceClassification, {"id2label": ("bad", "fair", "good")}),
    "tag": (BertForTokenClassification, {"id2label": ("O", "B-cat", "I-cat")}),
    "answer": (BertForQuestionAnswering, {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Job -> the folder of a small model for it."""
    tokenizer = small_tokenizer(" , !")
    made = {}
    for job, (model_class, fields) in MODELS.items():
        folder = tmp_path_factory.mktemp(job)
        made[job] = str(save_small(folder, model_class, tokenizer, max_position_embeddings=24, **fields))
    return made


@pytest.fixture
def call(folders, monkeypatch, capfdbinary):
    """Runs a job in this process -> (exit code, lines of stdout, stderr)."""

    def call(job, content, *options, folder=None):
        content = content if isinstance(content, bytes) else "".join(f"{line}\n" for line in content).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        code = program.run("bert_jax", JOBS, [job, folder or folders[job], *options])
        out, error = capfdbinary.readouterr()
        assert out == b"" or out.endswith(b"\n")
        return code, out.decode().split("\n")[:-1], error.decode()

    return call


def close(a, b):
    """Equal, but for the digits of numbers that one of them lacks."""
    if isinstance(a, float):
        return abs(a - b) <= 1e-5 * (1 + abs(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[name], b[name]) for name in a)
    return len(a) == len(b) and all(map(close, a, b)) if isinstance(a, list) else a == b


def answered(call, job, lines, *options):
    """The objects that come out where nothing is wrong."""
    code, out, error = call(job, lines, *options)
    assert (code, error) == (0, "")
    return [json.loads(line) for line in out]


def test_fill_mask(call, folders):
    texts = [f"{text} [MASK]" for text in TEXTS] + ["[MASK] [MASK]"]
    answers = answered(call, "fill-mask", texts, "--top-k", "2", "--batch-size", "4")
    for text, answer, (masks, completions) in zip(
        texts, answers, FillMask.from_pretrained(folders["fill-mask"]).fills(texts, 2), strict=True
    ):
        fills = [[{"token": token, "probability": p} for token, p in mask] for mask in masks]
        assert close(answer, {"text": text, "masks": fills, "completions": completions})
    _, out, _ = call("fill-mask", texts, "--top-k", "2", "--format", "tsv")
    assert [line.split("\t") for line in out] == [
        [" ".join(completion.split()) for completion in answer["completions"]] for answer in answers
    ]


def test_embed(call, folders):
    vectors = TextEmbedder.from_pretrained(folders["embed"])([*TEXTS, ""])
    answers = answered(call, "embed", [*TEXTS, ""])
    assert [answer["text"] for answer in answers] == [*TEXTS, ""]
    np.testing.assert_allclose([answer["embedding"] for answer in answers], vectors, rtol=1e-6, atol=1e-7)
    _, out, _ = call("embed", TEXTS, "--format", "tsv", "--dtype", "bfloat16")
    np.testing.assert_allclose([[*map(float, line.split("\t"))] for line in out], vectors[:-1], atol=0.2)


def test_classify(call, folders):
    pipeline = TextClassifier.from_pretrained(folders["classify"])
    for lines, arguments in ((TEXTS, (TEXTS,)), ([f"{text}\tthe mat" for text in TEXTS], (TEXTS, ["the mat"] * 5))):
        answers = answered(call, "classify", lines)
        for text, answer, labels in zip(TEXTS, answers, pipeline(*arguments), strict=True):
            expected = {"text": text} | ({"pair": "the mat"} if len(arguments) > 1 else {})
            assert close(answer, expected | {"labels": [{"label": label, "probability": p} for label, p in labels]})
    _, out, _ = call("classify", TEXTS, "--format", "tsv")
    assert [line.split("\t")[::2] for line in out] == [[label for label, _ in row] for row in pipeline(TEXTS)]


@pytest.mark.parametrize(("labels", "wanted"), [(("score",), "value"), (("x", "y"), "labels")])
def test_classify_gives_numbers(call, tmp_path, folders, labels, wanted):
    with pytest.warns(UserWarning, match="initialised it at random"):
        model, params = BertForSequenceClassification.from_pretrained(
            folders["classify"], id2label=labels, problem_type="regression"
        )
    model.save_pretrained(tmp_path, params)
    BertTokenizer.from_pretrained(folders["classify"]).save_pretrained(tmp_path)
    (expected,) = TextClassifier.from_pretrained(tmp_path)(["a cat"])
    for format in ("jsonl", "tsv"):
        _, (line,), _ = call("classify", ["a cat"], "--format", format, folder=str(tmp_path))
        if format == "jsonl":
            said = json.loads(line)[wanted]
            assert close(said, expected if len(labels) == 1 else [{"label": a, "value": b} for a, b in expected])
        else:
            assert len(line.split("\t")) == (1 if len(labels) == 1 else 4)


def test_tag(call, folders):
    answers = answered(call, "tag", [*TEXTS, ""])
    found = TokenTagger.from_pretrained(folders["tag"])([*TEXTS, ""])
    assert any(found)
    for text, answer, entities in zip([*TEXTS, ""], answers, found, strict=True):
        assert close(answer, {"text": text, "entities": [entity._asdict() for entity in entities]})
    _, out, _ = call("tag", TEXTS, "--format", "tsv")
    assert [len(line.split("\t")) for line in out] == [max(1, 2 * len(entities)) for entities in found[:-1]]


def test_answer(call, folders):
    context = "Dogs ran over green hills, while the cat sat on a mat. " * 2
    lines = [f"the cat\t{context}", json.dumps({"question": "a\tmat", "context": context + "\n", "id": 3}), "a\t"]
    options = ("--top-k", "2", "--max-length", "20", "--stride", "3", "--max-answer-length", "4")
    answers = answered(call, "answer", lines, *options)
    pipeline = QuestionAnswerer.from_pretrained(folders["answer"])
    pipeline = QuestionAnswerer(pipeline.model, pipeline.params, pipeline.tokenizer, 20, 3)
    questions, contexts = ["the cat", "a\tmat", "a"], [context, context + "\n", ""]
    for answer, question, told, found in zip(
        answers, questions, contexts, pipeline(questions, contexts, 2, 4), strict=True
    ):
        best = [one._asdict() for one in found.best]
        expected = {"question": question, "context": told, "answers": best, "null_score": found.null_score}
        assert close(answer, expected)
    _, out, _ = call("answer", lines, "--format", "tsv")
    assert [len(line.split("\t")) for line in out] == [2, 2, 1] and out[2] == ""


def test_chunks_and_line_ends(call, monkeypatch):
    monkeypatch.setattr(program, "CHUNK", 1)
    texts = [f"{'the ' * (i % 7)}{i}" for i in range(23)]
    expected = answered(call, "embed", texts)
    content = "\ufeff" + "\r\n".join(texts)
    _, out, _ = call("embed", content.encode(), "--batch-size", "4")
    assert [json.loads(line)["text"] for line in out] == texts
    assert close([json.loads(line) for line in out], expected)
    assert call("embed", b"") == (0, [], "")


def test_memory_does_not_grow_with_the_input(folders, monkeypatch):
    monkeypatch.setattr(program, "CHUNK", 1)
    job = JOBS["classify"](folders["classify"], batch_size=4)
    written, read = io.BytesIO(), 0

    def lines():
        nonlocal read
        for index in range(30):
            read = index + 1
            assert read <= written.getvalue().count(b"\n") + 4
            yield b"the cat\n"

    program.answer_lines("bert_jax", job, job.load(), lines(), written, 4)
    assert written.getvalue().count(b"\n") == read == 30


def test_what_is_cut_is_told_by_line(call, monkeypatch):
    monkeypatch.setattr(program, "CHUNK", 1)
    code, out, error = call("embed", ["a", "cat " * 30, "a", "a", "cat " * 40], "--batch-size", "3")
    assert code == 0 and len(out) == 5
    assert error == "".join(
        f"bert_jax: of a text the first 24 tokens are read: the end of lines {number} is left out\n"
        for number in (2, 5)
    )


# --- what is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "content", "words"),
    [
        ("fill-mask", ["[MASK]", "no mask"], "line 2 ('no mask') needs a [MASK] in its first 24 tokens"),
        ("fill-mask", ["[MASK]", ""], "line 2 ('') needs a [MASK]"),
        ("embed", b"a\nb\n\xff\n", "line 3 is not UTF-8 (byte 0)"),
        ("embed", "a\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("classify", ["a", "b\tc"], "line 2 has a second text, unlike those before it"),
        ("classify", ["a\tb", "c"], "line 2 lacks a second text, unlike those before it"),
        ("classify", ["a\tb\tc"], "line 1 has 3 columns: give a text, or two with a tab between them"),
        ("answer", ["a\tb", "c"], "line 2 must be a question, a tab and its context, or {"),
        ("answer", ["a\tb\tc"], "line 1 has 3 columns"),
        ("answer", ['{"question": "a"}'], "line 1 must be a question, a tab"),
        ("answer", ['{"question": "a", "context": 3}'], "line 1 must be"),
        ("answer", ["[" * 100_000], "line 1 must be"),
        ("answer", ['{"question": "\\ud800", "context": ""}'], "line 1 has half of a surrogate pair"),
        ("answer", ["a\tb", "cat " * 40 + "\tb"], "line 2 has 40 tokens, which leaves none of 24 for the context"),
    ],
)
def test_lines_are_refused(call, job, content, words):
    code, out, error = call(job, content)
    assert (code, out) == (2, [])
    assert error.startswith(f"bert_jax: error: {words}") and error.count("\n") == 1 and len(error) < 400


def test_what_came_before_a_wrong_line_is_written(call, monkeypatch):
    monkeypatch.setattr(program, "CHUNK", 1)
    code, out, error = call("fill-mask", ["[MASK]"] * 5 + ["no"], "--batch-size", "2")
    assert code == 2 and len(out) == 4 and "line 6" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-size", "0"], "--batch-size must be an integer from 1 to 65536, not 0"),
        (["--format", "csv"], "--format"),
        (["--colour"], "--colour"),
        (["--prompt-name", "query"], "prompt_name 'query': the prompts are none"),
    ],
)
def test_options_are_refused(call, options, words):
    code, out, error = call("embed", ["a"], *options)
    assert (code, out) == (2, []) and words in error and error.count("\n") == 1


def test_folders_are_refused(call, tmp_path):
    code, out, error = call("tag", ["a"], folder=str(tmp_path))
    assert (code, out) == (2, []) and f"{tmp_path}/config.json does not exist" in error


def test_usage(capsys):
    run = functools.partial(program.run, "bert_jax", JOBS)
    assert run([]) == 2 and run(["--help"]) == 0
    assert capsys.readouterr().out == f"{program.usage('bert_jax', JOBS)}\n" * 2
    assert run(["paint", "x"]) == 2
    assert "unknown job 'paint': choose one of fill-mask, embed" in capsys.readouterr().err
    assert run(["answer", "--help"]) == 0
    assert "--max-answer-length" in capsys.readouterr().out


class Closed(io.BytesIO):
    def write(self, content):
        raise BrokenPipeError


class Full(io.BytesIO):
    def write(self, content):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("sink", "expected"), [(Closed, (0, "")), (Full, (4, "No space left on device"))])
def test_streams_that_take_no_more(call, monkeypatch, sink, expected):
    class Stream:
        buffer = sink()

    monkeypatch.setattr(sys, "stdout", Stream)
    code, _, error = call("embed", ["a"])
    assert code == expected[0] and expected[1] in error and (error == "") is (code == 0)


def test_interrupted(call, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "answer_lines", interrupted)
    assert call("embed", ["a"]) == (130, [], "")


def test_as_a_program(folders):
    """A reader that goes away early, and Ctrl-C: neither is an error that anybody hears of."""
    command = [sys.executable, "-m", "bert_jax", "embed", folders["embed"], "--batch-size", "1"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, bufsize=0, **pipes) as left, subprocess.Popen(command, bufsize=0, **pipes) as told:
        for process in (left, told):
            process.stdin.write(b"the cat\n" * 16)
        for process in (left, told):
            assert json.loads(process.stdout.readline())["text"] == "the cat"
        left.stdout.close()
        told.send_signal(signal.SIGINT)
        with contextlib.suppress(BrokenPipeError):
            left.stdin.write(b"the cat\n" * 1600)
        left.stdin.close()
        assert (left.stderr.read(), left.wait()) == (b"", 0)
        assert (told.stderr.read(), told.wait()) == (b"", 130)
