"""The embedded requests and what is made of them: the same everywhere, and no held-out filling in training."""

import subprocess
import sys
from collections import Counter
from zlib import crc32

import pytest

from train.data.conll import tagged_of
from train.data.request_tasks import request_choices, request_questions, similar_requests
from train.data.requests import (
    TEMPLATES,
    filling_of,
    is_held_out,
    requests,
    slots_in,
    wordings,
)
from train.data.tables import Row

SIDES = ("train", "held out")


@pytest.fixture(scope="module")
def made():
    return dict(zip(SIDES, requests(), strict=True))


def fillings(side):
    return {(request.intent, *sorted(filling_of(request).items())) for request in side}


def test_counts_intents_and_unique_texts(made):
    train, held_out = made.values()
    assert (len(train), len(held_out), len(TEMPLATES)) == (2016, 406, 14)
    assert set(Counter(request.intent for request in train).values()) == {144}
    assert set(Counter(request.intent for request in held_out).values()) == {29}
    texts = [request.text for request in train + held_out]
    assert len(set(texts)) == len(texts)
    assert {tag for request in held_out for tag in request.tags} <= {tag for request in train for tag in request.tags}


@pytest.mark.parametrize("side", SIDES)
def test_tokens_joined_are_the_text_and_tags_are_bio(made, side):
    for request in made[side]:
        assert " ".join(request.tokens) == request.text == " ".join(request.text.split())
        tagged_of(Row("--data: row", {"tokens": request.tokens, "tags": request.tags}))
        assert request.tags[0] == "O" and "{" not in request.text
        filling = filling_of(request)
        assert filling and all(f" {value}" in request.text for value in filling.values())
        assert request in wordings(request.intent, filling)


def test_no_held_out_filling_in_training(made):
    train, held_out = (fillings(side) for side in made.values())
    assert not train & held_out and len(held_out) > 300
    assert all(is_held_out(r.intent, filling_of(r)) == (side == "held out") for side in SIDES for r in made[side])


def test_templates_have_two_wordings_of_each_set_of_slots():
    for templates in TEMPLATES.values():
        counts = Counter(frozenset(slots_in(template)) for template in templates)
        assert min(counts.values()) >= 2
        assert all(len(set(slots_in(template))) == len(slots_in(template)) for template in templates)


def test_values_are_in_cldrs_forms(made):
    found = {}
    for request in made["train"]:
        for slot, value in filling_of(request).items():
            found.setdefault(slot, set()).add(value)
    assert {"PM", "AM"} == {value.split()[1] for value in found["time"]}
    assert {"miles", "square feet", "grams"} <= found["unit"] and {"Japanese yen", "euros"} <= found["currency"]
    assert any(value[0] == "€" for value in found["amount"]) and any(
        value.endswith("euros") for value in found["amount"]
    )
    assert {"German", "French"} <= found["language"] and {"Greenland", "Canada"} <= found["country"]
    for request in made["train"]:
        if request.intent == "convert_units":
            filling = filling_of(request)
            assert filling["quantity"].partition(" ")[2] != filling["unit"]


# --- similarity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_similar_pairs(made, side):
    pairs = similar_requests(made[side])
    assert len(pairs) == len(made[side]) and all(pair.text != pair.other for pair in pairs)
    of = {request.text: request for request in made[side]}
    for kind, pair in enumerate(pairs):
        request = of[pair.text]
        reworded = {wording.text for wording in wordings(request.intent, filling_of(request))}
        if kind % 4 == 0:
            assert pair.other in reworded and pair.score == 5
        else:
            assert pair.other not in reworded or pair.score == 5
        if kind % 4 == 1:
            assert 3 <= pair.score < 5
        if kind % 4 == 3:
            assert of[pair.other].intent != request.intent and pair.score <= 2
    scores = Counter(pair.score for pair in pairs)
    assert min(scores[5.0], scores[3.0], scores[0.0]) > len(pairs) / 6 and len(scores) > 4


def test_similar_pairs_hold_their_own_sides_fillings_only(made):
    texts = {side: {text for pair in similar_requests(made[side]) for text in pair[:2]} for side in SIDES}
    assert not texts["train"] & texts["held out"]


# --- questions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_questions_have_their_answers_or_none(made, side):
    questions = request_questions(made[side])
    assert len({question.id for question in questions}) == len(questions) == len(made[side])
    for request, question in zip(made[side], questions, strict=True):
        sentences = question.context.removesuffix(".").split(". ")
        assert 3 <= len(sentences) <= 4 and request.text[1:] in {sentence[1:] for sentence in sentences}
        assert question.impossible == (not question.answers)
        for text, start in question.answers:
            assert question.context[start : start + len(text)] == text and text in request.text
            first = question.context.index(request.text[1:])
            assert first <= start < first + len(request.text)
    impossible = [question for question in questions if question.impossible]
    assert 0.15 < len(impossible) / len(questions) < 0.25
    assert any(q.question == "Which date does the alarm have?" for q in impossible)


def test_no_question_is_impossible_that_its_context_answers(made):
    asked = {}
    for request, question in zip(made["train"], request_questions(made["train"]), strict=True):
        if question.answers:
            (slot,) = [slot for slot, value in filling_of(request).items() if value == question.answers[0].text]
            asked[question.question] = (request.intent, slot)
    of = {request.text[1:]: request for request in made["train"]}
    for question in request_questions(made["train"]):
        if question.impossible:
            intent, slot = asked[question.question]
            inside = [of[sentence[1:]] for sentence in question.context.removesuffix(".").split(". ")]
            assert not [r for r in inside if r.intent == intent and slot in filling_of(r)]


# --- choices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_choices_have_one_right_ending(made, side):
    choices = request_choices(made[side])
    assert len(choices) == len(made[side])
    ends = {tuple(r.tokens[i:]): r for r in made[side] for i, tag in enumerate(r.tags) if tag[0] == "B"}
    for request, choice in zip(made[side], choices, strict=True):
        assert f"{choice.prompt} {choice.endings[choice.label]}" == request.text
        assert len(set(choice.endings)) == 4 and all(tuple(ending.split()) in ends for ending in choice.endings)
    assert min(Counter(choice.label for choice in choices).values()) > len(choices) / 6


def test_no_wrong_ending_fits(made):
    for choice in request_choices(made["train"]):
        for ending in choice.endings[: choice.label] + choice.endings[choice.label + 1 :]:
            if choice.prompt == "how much is":  # sums of money in another currency, and percentages of such sums
                assert "%" not in ending.split()[0] and not ending.startswith(("€", "$", "£"))
            if choice.prompt.endswith((" fly to", " plane to", " flight from")):
                assert not any(ending.startswith(name) for name in ("Greenland", "Portugal", "Zimbabwe", "Canada"))


# --- everywhere --------------------------------------------------------------------------------------------------


def test_the_same_in_another_process(made):
    program = (
        "from zlib import crc32; from train.data.request_tasks import *; from train.data.requests import requests\n"
        "sides = requests()\n"
        "print([crc32(repr([make(side) for side in sides]).encode()) for make in "
        "(list, similar_requests, request_questions, request_choices)])"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    makers = (list, similar_requests, request_questions, request_choices)
    assert other.stdout.strip() == str([crc32(repr([f(side) for side in made.values()]).encode()) for f in makers])
