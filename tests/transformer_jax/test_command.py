"""`python -m transformer_jax`: a line in, a line out, whatever stands in it."""

import io
import json
import subprocess
import sys

import pytest

from tests.transformer_jax.marian_folders import SENTENCES, edit_config, own_model, processor
from transformer_jax import Translator, lines, save_marian
from transformer_jax.decoding import EndAtLimit, Forbidden, ForcedStart, MinimumLength, RepetitionPenalty
from transformer_jax.jobs import JOBS
from transformer_jax.shortlist import ShortList
from transformer_jax.tokenizer import save_tokenizer

LINES = [*SENTENCES, "", "a  dog\tthe fox", "   ", "dog " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model and its vocabulary."""
    folder = tmp_path_factory.mktemp("model")
    model, params = own_model(32)
    model.save_pretrained(folder, params)
    save_tokenizer(folder, processor())
    return str(folder)


@pytest.fixture
def call(folder, monkeypatch, capfdbinary):
    """Runs a job in this process -> (exit code, lines of stdout, stderr)."""

    def call(job, content, *options, folder=folder):
        content = content if isinstance(content, bytes) else "".join(f"{line}\n" for line in content).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        code = lines.run("transformer_jax", JOBS, [job, folder, "--batch-size", "4", "--devices", "1", *options])
        out, error = capfdbinary.readouterr()
        assert out == b"" or out.endswith(b"\n")
        return code, out.decode().split("\n")[:-1], error.decode()

    return call


def one_space(texts):
    return [" ".join(text.split()) for text in texts]


def test_a_line_is_a_translation(call, folder):
    expected = one_space(Translator.from_pretrained(folder, batch_size=4)(LINES))
    assert call("translate", LINES) == (0, expected, "")
    assert expected[4] == expected[6] == "" and all(expected[:4])


def test_the_best_few_with_their_scores(call, folder):
    outputs = Translator.from_pretrained(folder, num_beams=3, preset="hf", length_penalty=1.0).n_best(LINES)
    options = ("--num-beams", "3", "--preset", "hf", "--length-penalty", "1", "--n-best", "2")
    code, out, error = call("translate", LINES, *options, "--format", "jsonl")
    assert (code, error) == (0, "")
    for line, answer, found in zip(LINES, out, outputs, strict=True):
        said = json.loads(answer)
        assert said["text"] == line
        assert [each["text"] for each in said["translations"]] == [output.text for output in found[:2]]
        for each, output in zip(said["translations"], found, strict=False):
            assert each["score"] == pytest.approx(output.score, abs=1e-5)
    _, columns, _ = call("translate", LINES, *options, "--format", "tsv")
    for row, found in zip(columns, outputs, strict=True):
        cells = row.split("\t")
        assert (cells == [""]) if not found else cells[1::2] == one_space(output.text for output in found[:2])
        assert [float(score) for score in cells[:-1:2]] == pytest.approx([o.score for o in found[:2]], abs=1e-5)


def test_alignments_say_the_same_in_every_format(call, folder):
    translate = Translator.from_pretrained(folder, batch_size=4)
    outputs = [found[:2] for found in translate.n_best(LINES)]
    aligned = [
        [*zip(own, translate.align([line] * len(own), [o.text for o in own]), strict=True)]
        for line, own in zip(LINES, outputs, strict=True)
    ]
    code, objects, _ = call("translate", LINES, "--n-best", "2", "--alignment", "--format", "jsonl")
    said = [[each["alignment"] for each in json.loads(line)["translations"]] for line in objects]
    assert code == 0 and said == [[[[*link] for link in alignment.links] for _, alignment in own] for own in aligned]
    _, columns, _ = call("translate", LINES, "--n-best", "2", "--alignment", "--format", "tsv")
    cells = [row.split("\t")[2::3] for row in columns]
    assert cells == [[alignment.pharaoh() for _, alignment in own] for own in aligned]
    assert [len(own) for own in aligned] == [2, 2, 2, 2, 0, 2, 0, 2] and all(cells[0])
    _, out, error = call("translate", LINES, "--max-length", "24", "--alignment")
    assert error.count("\n") == 1 and "the end of lines 8 is left out" in error
    for row, own in zip(out, aligned[:7], strict=False):
        assert row == (" ||| ".join([*one_space([own[0][0].text]), own[0][1].pharaoh()]) if own else "")


def test_samples_depend_on_the_seed_and_the_line_alone(call, monkeypatch):
    texts = ["a lazy dog"] * 6 + ["the fox"]
    options = ("--count", "3", "--format", "tsv", "--seed")
    code, out, _ = call("sample", texts, *options, "1")
    assert code == 0 and len(set(out)) == 7  # though six of the lines are the same
    monkeypatch.setattr(lines, "CHUNK", 1)
    assert call("sample", texts, *options, "1")[1] == out
    assert call("sample", texts, *options, "2")[1] != out
    _, sharp, _ = call("sample", texts[:2], "--top-k", "1", "--count", "2", "--format", "tsv")
    cells = sharp[0].split("\t")
    assert cells[:2] == cells[2:] and sharp[0] == sharp[1]


def test_sentences_are_split_over_all_devices(folder):
    assert JOBS["translate"](folder).load().mesh.size == 8
    assert JOBS["sample"](folder, devices=3).load()[0].mesh.size == 3
    assert JOBS["translate"](folder, devices=1).load().mesh is None


def test_lines_say_phrases_and_a_table_says_words(call, folder, tmp_path):
    """Over several devices too."""
    table = tmp_path / "lex"
    table.write_text("▁a ▁d 0.5\no ▁d 0.25\n", encoding="utf-8")
    options = ("--phrases", "--shortlist", str(table), "--format", "jsonl", "--devices", "2")
    code, out, error = call("translate", ["the fox\ta dog\tfox\t", "a  dog", ""], *options)
    assert (code, error) == (0, "")
    shortlist = ShortList.read(table, processor(), first=100)
    translate = Translator.from_pretrained(folder, batch_size=4, shortlist=shortlist)
    expected = translate.n_best(["the fox", "a  dog", ""], phrases=[["a dog", "fox"], [], []])
    assert "a dog" in expected[0][0].text and "fox" in expected[0][0].text
    for answer, found in zip(map(json.loads, out), expected, strict=True):
        assert [each["text"] for each in answer["translations"]] == [each.text for each in found][:1]
    assert [json.loads(answer)["phrases"] for answer in out] == [["a dog", "fox"], [], []]
    code, out, error = call("translate", ["the fox", "a dog\t漢"], "--phrases")
    assert code == 2 and "error: line 2 has a phrase that cannot be in an output: the tokenizer does not" in error


def test_memory_does_not_grow_with_the_input(folder):
    job = JOBS["translate"](folder, batch_size=4, devices=1)
    written, read = io.BytesIO(), 0

    def source():
        nonlocal read
        for index in range(12):
            read = index + 1
            assert read <= written.getvalue().count(b"\n") + 4
            yield b"the fox\n"

    lines.answer_lines("transformer_jax", job, job.load(), source(), written, 4)
    assert written.getvalue().count(b"\n") == read == 12


def test_no_line_is_lost_or_shifted(call, folder, monkeypatch):
    """Bytes that are no text, an empty line, one that is far too long, separators that are none, no end at the end."""
    monkeypatch.setattr(lines, "CHUNK", 1)
    content = b"\xef\xbb\xbfthe fox\r\na \xff dog\n\n" + b"dog " * 10_000 + "\na\u2028dog\x0b\x1cthe\nthe fox".encode()
    translator = Translator.from_pretrained(folder)
    with pytest.warns(UserWarning, match="first 256 tokens"):
        expected = one_space(
            translator(["the fox", "a \ufffd dog", "", "dog " * 10_000, "a\u2028dog\x0b\x1cthe", "the fox"])
        )
    code, out, error = call("translate", content)
    assert (code, out) == (0, expected) and len(out) == 6
    assert error.splitlines() == [
        "transformer_jax: line 2 is not UTF-8 (byte 2): what cannot be read there is read as U+FFFD",
        "transformer_jax: of a text the first 256 tokens are read: the end of lines 4 is left out",
    ]


def test_back_translations_are_pairs_to_train_on(call, folder):
    """Rows SOURCE, tab, TARGET; what is empty, cut or not readable is none, and told."""
    content = b"the fox\n\n  \na  lazy\tdog\n>>de<<  the quick fox\nfox \0\n"
    content += b"dog \xff\n" + b"dog " * 40 + b"\n>>de<<\n"
    code, out, error = call("translate", content, "--format", "back-translation", "--max-length", "32")
    asked = ["the fox", "a  lazy\tdog", ">>de<<  the quick fox"]
    expected = one_space(Translator.from_pretrained(folder, batch_size=4, max_length=32)(asked))
    targets = ["the fox", "a lazy dog", "the quick fox"]
    assert code == 0 and all(expected)
    assert out == [f"<BT> {source}\t{target}" for source, target in zip(expected, targets, strict=True)]
    assert error.splitlines()[-1] == "transformer_jax: nothing is written for lines 2, 3, 6, 7, 8 and 1 more"
    assert "of a text the first 32 tokens are read: the end of lines 8" in error
    _, several, _ = call("sample", ["a lazy dog"] * 4, "--format", "back-translation", "--count", "3")
    assert 8 <= len(several) <= 12 and {row.split("\t")[1] for row in several} == {"a lazy dog"}
    ranked = ("--minimum-risk", "--count", "3", "--format", "back-translation")
    code, out, error = call("sample", ["a"], *ranked)
    assert (code, out) == (2, []) and "--minimum-risk has no meaning" in error


def test_a_marian_says_its_options_itself(call, tmp_path):
    model, params = own_model(32)
    save_marian(tmp_path, model, params, processor())
    read = Translator.from_pretrained(tmp_path)
    assert (read.num_beams, read.preset, read.max_length, read.max_output_length) == (4, "hf", 40, 40)
    assert read.constraints == (Forbidden((32,)), EndAtLimit(1))
    code, out, _ = call("translate", SENTENCES, folder=str(tmp_path))
    assert code == 0 and out == one_space(Translator.from_pretrained(tmp_path, batch_size=4)(SENTENCES))
    assert Translator.from_pretrained(tmp_path, num_beams=2, preset="paper").num_beams == 2


def test_what_is_given_stands_over_what_a_folder_says(tmp_path):
    model, params = own_model(32)
    save_marian(tmp_path, model, params, processor())
    said = tmp_path / "generation_config.json"
    fields = json.loads(said.read_text()) | {"repetition_penalty": 1.3, "max_length": 20, "forced_bos_token_id": 5}
    said.write_text(json.dumps(fields))
    bans = (Forbidden((32,)), ForcedStart(5), EndAtLimit(1))
    read = Translator.from_pretrained(tmp_path, min_length=3)
    assert read.constraints == (RepetitionPenalty(1.3), Forbidden((32,)), MinimumLength(3, 1), *bans[1:])
    assert (read.max_length, read.max_output_length) == (40, 20)
    assert all(found[0].ids[0] == 5 for found in read.n_best(SENTENCES))
    assert Translator.from_pretrained(tmp_path, repetition_penalty=1.0).constraints == bans
    assert Translator.from_pretrained(tmp_path, constraints=()).constraints == ()
    with pytest.raises(ValueError, match="give constraints, or min_length, which become constraints"):
        Translator.from_pretrained(tmp_path, constraints=(), min_length=3)
    said.unlink()
    edit_config(tmp_path, num_beams=6, bad_words_ids=[[32], [1]])  # as folders of before 2023 have it
    older = Translator.from_pretrained(tmp_path)
    assert (older.num_beams, older.preset, older.constraints) == (6, "hf", (Forbidden((32,)),))
    edit_config(tmp_path, suppress_tokens=[4])
    with pytest.raises(ValueError, match=r"config.json: suppress_tokens \[4\] is not supported") as caught:
        Translator.from_pretrained(tmp_path)
    assert str(caught.value).count(str(tmp_path)) == 1


def test_models_decide_together(call, folder, tmp_path):
    model, params = own_model(32, mlp_dim=8)
    model.save_pretrained(tmp_path, params)
    save_tokenizer(tmp_path, processor())
    alone, same, both = (
        call("translate", SENTENCES, "--format", "tsv", *options)[1]
        for options in ([], ["--ensemble", folder, folder], ["--ensemble", str(tmp_path)])
    )
    for one, two in zip(alone, same, strict=True):
        assert one.split("\t")[1] == two.split("\t")[1]
        assert float(one.split("\t")[0]) == pytest.approx(float(two.split("\t")[0]), abs=1e-5)
    assert both != alone


@pytest.mark.parametrize(
    ("job", "options", "words"),
    [
        ("translate", ["--n-best", "5", "--format", "tsv"], "--n-best 5 is more than the 4 of --num-beams"),
        ("translate", ["--n-best", "2"], "--n-best 2: --format text has the best output alone"),
        (
            "translate",
            ["--num-beams", "1", "--length-penalty", "1"],
            "--length-penalty: no meaning beside --num-beams 1",
        ),
        ("translate", ["--num-beams", "1", "--phrases"], "--phrases: phrases need num_beams of 2 or more"),
        ("sample", ["--shortlist", "no/such"], "no/such cannot be read: No such file"),
        (
            "translate",
            ["--preset", "marian", "--early-stopping", "True"],
            "--early-stopping: no meaning beside --preset",
        ),
        ("sample", ["--count", "3"], "--count 3: --format text has the first output alone"),
        ("sample", ["--count", "2", "--minimum-risk"], "--minimum-risk has no choice"),
        ("translate", ["--n-best", "0"], "--n-best must be an integer from 1"),
        ("translate", ["--devices", "9"], "--devices 9: there are 8"),
        ("translate", ["--num-beams", "0"], "--num-beams must be an integer from 1"),
        ("translate", ["--preset", "fairseq"], "--preset"),
        ("translate", ["--repetition-penalty", "0"], "--repetition-penalty must be a number above 0"),
        ("sample", ["--top-p", "0"], "--top-p must be a number above 0 to 1"),
        ("sample", ["--temperature", "nan"], "--temperature must be a number above 0"),
        ("sample", ["--seed", "-1"], "--seed must be an integer from 0"),
    ],
)
def test_options_are_refused(call, job, options, words):
    code, out, error = call(job, ["a"], *options)
    assert (code, out) == (2, []) and words in error and error.count("\n") == 1


def test_an_ensemble_of_other_vocabularies_is_refused(call, folder, tmp_path):
    model, params = own_model(32)
    save_marian(tmp_path, model, params, processor())
    code, out, error = call("translate", ["a"], "--ensemble", str(tmp_path))
    assert (code, out) == (2, []) and f"{tmp_path} has another tokenizer than {folder}" in error


def test_as_a_program(folder):
    command = [sys.executable, "-m", "transformer_jax", "translate", folder, "--num-beams", "1", "--devices", "1"]
    done = subprocess.run(command, input=b"the fox\n\na dog\n", capture_output=True, check=True)
    assert done.stdout.count(b"\n") == 3 and done.stderr == b""
