"""Similar pairs, questions and choices made of the embedded requests: the default data of those tasks.

All are pure functions of the requests. What is made of one side's requests has that side's fillings only.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from train.data.requests import (
    NAME,
    TEMPLATES,
    Request,
    filling_of,
    slots_in,
    with_another_value,
    wordings,
)
from train.data.squad import Answer, Question

_NOUNS = {
    "set_reminder": "reminder",
    "set_alarm": "alarm",
    "set_timer": "timer",
    "convert_units": "unit conversion",
    "convert_money": "currency exchange",
    "send_money": "payment",
    "take_percent": "percentage",
    "find_speakers": "search for speakers",
    "translate": "translation",
    "book_flight": "flight",
    "get_weather": "weather report",
    "get_time": "local time",
    "schedule_meeting": "meeting",
    "count_days": "countdown",
}
_QUESTIONS = ("What is the {slot} of the {noun}?", "Which {slot} does the {noun} have?")
_IMPOSSIBLE_EVERY = 5


class ScoredPair(NamedTuple):
    """Two texts, and how alike they are, from 0 to 5."""

    text: str
    other: str
    score: float


class Choice(NamedTuple):
    """The beginning of a request, four endings, and the index of the one that is right."""

    prompt: str
    endings: list[str]
    label: int


# --- similarity --------------------------------------------------------------------------------------------------


def similar_requests(requests: Sequence[Request]) -> list[ScoredPair]:
    """A pair for each request, in turn with another wording of it, with one other value, of its intent, of another.

    The score is 3 for the same intent and up to 2 more for the share of (slot, value) which both requests have of all
    that either has: 5 for another wording, 3 for other values, 0 for what has nothing in common.
    """
    rng = random.Random(2019)
    pairs = []
    for index, request in enumerate(requests):
        same_intent = [other for other in requests if other.intent == request.intent and other is not request]
        another = [other for other in requests if other.intent != request.intent]
        possible = [w for w in wordings(request.intent, filling_of(request)) if w.text != request.text]
        if index % 4 == 1:
            possible = [with_another_value(request, rng)]
        elif index % 4 > 1:
            possible = same_intent if index % 4 == 2 else another
        other = rng.choice(possible)
        pairs.append(ScoredPair(request.text, other.text, _similarity(request, other)))
    return pairs


def _similarity(request: Request, other: Request) -> float:
    one, two = set(filling_of(request).items()), set(filling_of(other).items())
    return 3.0 * (request.intent == other.intent) + 2.0 * len(one & two) / len(one | two)


# --- questions ---------------------------------------------------------------------------------------------------


def request_questions(requests: Sequence[Request]) -> list[Question]:
    """A question for each request on a context of it and two or three others, each of another intent.

    It asks for a slot's value, and every fifth question is impossible: on a request that lacks such a value (but has
    room for it), or on one that is not there.
    """
    rng = random.Random(2020)
    questions = []
    for index, request in enumerate(requests):
        context = {request.intent: request}
        size = rng.choice((3, 4))
        while len(context) < size:
            other = rng.choice(requests)
            context.setdefault(other.intent, other)
        impossible = index % _IMPOSSIBLE_EVERY == 0
        intent, slot = _impossible(context, request, rng) if impossible else (request.intent, _one_slot(request, rng))
        sentences = list(context.values())
        rng.shuffle(sentences)
        question = rng.choice(_QUESTIONS).format(slot=slot, noun=_NOUNS[intent])
        answers = [] if impossible else [_answer(sentences, request, slot)]
        place = f"{NAME}: question {index}"
        questions.append(Question(place, str(index), question, _prose(sentences), answers, impossible))
    return questions


def _one_slot(request: Request, rng: random.Random) -> str:
    return rng.choice(list(filling_of(request)))


def _impossible(context: dict[str, Request], request: Request, rng: random.Random) -> tuple[str, str]:
    """An intent and a slot that the context has no value for."""
    lacking = [slot for slot in _all_slots(request.intent) if slot not in filling_of(request)]
    if lacking:
        return request.intent, rng.choice(lacking)
    intent = rng.choice([intent for intent in TEMPLATES if intent not in context])
    return intent, rng.choice(_all_slots(intent))


def _all_slots(intent: str) -> list[str]:
    return list(dict.fromkeys(slot for template in TEMPLATES[intent] for slot in slots_in(template)))


def _prose(requests: Sequence[Request]) -> str:
    """Requests as sentences; no value is changed, since none begins a request."""
    return " ".join(f"{request.text[0].upper()}{request.text[1:]}." for request in requests)


def _answer(sentences: Sequence[Request], request: Request, slot: str) -> Answer:
    before = sentences[: sentences.index(request)]
    words = request.tokens[: request.tags.index(f"B-{slot}")]
    start = sum(len(sentence.text) + 2 for sentence in before) + sum(len(word) + 1 for word in words)
    return Answer(filling_of(request)[slot], start)


# --- choices -----------------------------------------------------------------------------------------------------


def request_choices(requests: Sequence[Request]) -> list[Choice]:
    """A choice for each request: it is cut where a value begins, and three other intents' endings are beside its own.

    Those begin with values of other kinds, none of which any template has after such a beginning.
    """
    rng = random.Random(2021)
    following = _following()
    choices = []
    for request in requests:
        cut = rng.choice(_cuts(request))
        fitting = following[_beginning(request, cut)]
        endings = {request.intent: " ".join(request.tokens[cut:])}
        while len(endings) < 4:
            other = rng.choice(requests)
            start = rng.choice(_cuts(other))
            ending = " ".join(other.tokens[start:])
            new = other.intent not in endings and ending not in endings.values()
            if new and _kind(other.tags[start]) not in fitting:
                endings[other.intent] = ending
        right, *wrong = endings.values()
        label = rng.randrange(4)
        choices.append(Choice(" ".join(request.tokens[:cut]), [*wrong[:label], right, *wrong[label:]], label))
    return choices


def _cuts(request: Request) -> list[int]:
    """The indices of the words that begin a value."""
    return [index for index, tag in enumerate(request.tags) if tag[0] == "B"]


def _kind(tag: str) -> str:
    """The kind of value that a B-tag begins."""
    return "country" if tag[2:] in ("origin", "destination") else tag[2:]


def _beginning(request: Request, cut: int) -> tuple[str, ...]:
    """The words before a cut, each value as its kind."""
    pairs = zip(request.tokens[:cut], request.tags[:cut], strict=True)
    return tuple(word if tag == "O" else f"{{{_kind(tag)}}}" for word, tag in pairs if tag[0] != "I")


def _following() -> dict[tuple[str, ...], set[str]]:
    """Beginning -> the kinds of values that some template has after it."""
    following: dict[tuple[str, ...], set[str]] = {}
    for template in (template for templates in TEMPLATES.values() for template in templates):
        words = [f"{{{_kind('B-' + word[1:-1])}}}" if word[0] == "{" else word for word in template.split()]
        for index, word in enumerate(words):
            if word[0] == "{":
                following.setdefault(tuple(words[:index]), set()).add(word[1:-1])
    return following
