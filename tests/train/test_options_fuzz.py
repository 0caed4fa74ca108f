"""Options of any value: taken for what they say, or refused in one line that names one; never anything else."""

import contextlib
import dataclasses
import io
import math
import shlex
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzzing import EXAMPLES, check_line, fuzz, snapshot
from train.__main__ import parse, run
from train.errors import InputError
from train.finetune import FinetuneConfig
from train.options import check_options, options
from train.pretrain import PretrainConfig
from train.translate import TranslateConfig

JOBS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "translate": TranslateConfig}
HINTS = {job: {option: hint for option, _, hint in options(make())} for job, make in JOBS.items()}

NUMBERS = st.integers(-3, 70).map(str) | st.integers().map(str) | st.floats().map(repr) | st.floats(0, 1).map(repr)
JUNK = st.sampled_from(
    [
        *["", " ", "-", "--", "-1", "--1", "None", "none", "null", "True", "on", "nan", "-inf", "1e999", "1_0", "0x10"],
        *["1" * 400, "9" * 6000, "x" * 5000, "--steps", "a=b", "{}", "{", "}", "\\", "*", "~", "/", "..", "/dev/null"],
        *["\0", "\n", "\x1b[31m", "\u2028", "é", "\ud800", "€" * 300, "[red]", "%s", "│", "─" * 90, "float32", "٣"],
    ]
)


def values(hint):
    """Texts for an option: what its type can mean, and what it cannot."""
    words = [choice for arg in (hint, *get_args(hint)) if get_origin(arg) is Literal for choice in get_args(arg)]
    return NUMBERS | JUNK | st.text(max_size=8) | (st.sampled_from(words) if words else NUMBERS)


@st.composite
def commands(draw, job, without=()):
    """Some options with one value each, several or none; often one or two, joined by a space or "="."""
    command = []
    for _ in range(draw(st.integers(1, 3))):
        option = draw(st.sampled_from([option for option in HINTS[job] if option not in without]))
        given = draw(st.lists(values(HINTS[job][option]), min_size=1, max_size=draw(st.sampled_from([1, 1, 1, 3]))))
        if draw(st.integers(0, 19)) == 0:
            option = draw(
                st.sampled_from([option[:-1], option + "x", f"--{option[2:].replace('-', '_')}", option.upper()])
            )
        if HINTS[job].get(option) is bool and draw(st.booleans()):
            command.append(draw(st.sampled_from([option, f"--no-{option[2:]}"])))
        elif draw(st.integers(0, 9)) == 0:
            command.append(f"{option}={given[0]}")
        else:
            command += [option, *(given if draw(st.integers(0, 19)) else [])]
    return command


def meaning(hint, text):
    """What the text of a value means for an option of that type."""
    if get_origin(hint) is Annotated:
        return meaning(get_args(hint)[0], text)
    if get_origin(hint) is Literal or hint is str:
        return text
    if NoneType in get_args(hint):
        return None if text == "None" else meaning(get_args(hint)[0], text)
    return hint(text)


def given_last(job, command):
    """Option -> its texts, of a command that is right."""
    texts = {}
    for part in command:
        name, equals, value = part.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else ""
        if name.startswith("--no-") and f"--{name[5:]}" in HINTS[job]:
            texts[f"--{name[5:]}"] = False
        elif name in HINTS[job]:
            texts[name] = current = [value] if equals else []
        else:
            current.append(part)
    return texts


def check_refusal(message, command):
    """One short line that names an option of the command, or repeats what is none."""
    check_line(message, "")
    said = message.partition(" (python -m train")[0]
    names = [part.partition("=")[0].replace("_", "-").removeprefix("--no-").removeprefix("--") for part in command]
    assert "Unrecognized options:" in said or any(name and f"--{name}" in said for name in names), command


@pytest.mark.parametrize("job", JOBS)
@settings(fuzz, max_examples=max(60, EXAMPLES // 2))
@given(data=st.data())
def test_taken_or_refused(job, data):
    command = data.draw(commands(job))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            config = parse(JOBS[job], job, command)
            if config is not None:
                check_options(config)
    except InputError as error:
        check_refusal(str(error), command)
        return
    finally:
        assert said.getvalue() == ""
    texts = given_last(job, command)
    found = {option: value for option, value, _ in options(config)}
    for option, value, hint in options(JOBS[job]()):
        if option not in texts:
            assert found[option] == value
        elif hint is bool:
            assert found[option] is (texts[option] is not False)
        elif get_origin(hint) is tuple:
            assert found[option] == tuple(texts[option])
        else:
            wanted = meaning(hint, texts[option][-1])
            assert type(found[option]) is type(wanted) and found[option] == wanted
            assert not isinstance(wanted, float) or math.isfinite(wanted)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def refuse(name, **options):
        raise OSError("there is no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.mark.parametrize("job", JOBS)
@settings(fuzz, max_examples=max(20, EXAMPLES // 6))
@given(data=st.data())
def test_refused_before_anything_is_written(job, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").write_text("mine")
    # Whatever else is right: the data does not exist, and nothing is trained.
    command = data.draw(commands(job, without=("--data", "--run", "--distributed")))
    command = [job, *command, "--run", str(tmp_path / "run"), "--data", str(tmp_path / "missing.txt")]
    before, out, error = snapshot(tmp_path), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        assert run(command) == 2, shlex.join(command)
    assert out.getvalue() == "" and error.getvalue().endswith("\n")
    check_refusal(error.getvalue()[:-1], command)
    assert snapshot(tmp_path) == before and Path.cwd() == tmp_path


@pytest.mark.parametrize("value", ["\x1b[31m", "\0", "x" * 5000])
@pytest.mark.parametrize("option", ["--remat", "--steps", "--colour"])
def test_what_no_line_can_hold(option, value):
    with pytest.raises(InputError) as caught:
        parse(PretrainConfig, "pretrain", [option, value])
    check_line(str(caught.value), option)


def test_what_is_right_is_taken():
    command = ["--steps", "7", "--no-scan-layers", "--optimizer.learning-rate", "0.5", "--data", "a", "b"]
    config = parse(PretrainConfig, "pretrain", command)
    check_options(config)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.5)
    assert config == PretrainConfig(steps=7, data=("a", "b"), optimizer=optimizer)
