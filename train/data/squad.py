"""Questions on paragraphs, with answers that are spans of them: SQuAD 1.1 and 2.0 as JSON."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from train.data.files import check_text, parse_json, read_lines
from train.errors import InputError
from transformer_jax.checks import printed, shown


class Answer(NamedTuple):
    """A span of the context: its text, and the index of its first character."""

    text: str
    start: int


class Question(NamedTuple):
    """A question; `impossible` says that the context has no answer, no answers without it that none is known."""

    place: str
    id: str
    question: str
    context: str
    answers: list[Answer]
    impossible: bool


def read_questions(path: str, *, option: str) -> list[Question]:
    """Reads a file of SQuAD 1.1 (Rajpurkar et al. 2016) or 2.0 (2018); a `.gz` suffix means gzip.

    It is an object: data[].paragraphs[] have `context` and `qas`; each of these has `id`, `question`, perhaps `answers`
    with `text` and `answer_start` (in characters), and perhaps `is_impossible`. Other members are not looked at.

    Raises:
        InputError: the file cannot be read or has no questions; something is missing or of another type; a context,
            question or answer is blank; an answer is not in its context where it says; an id occurs twice; or there are
            answers to a question that is impossible. The message has the path: `data[3].paragraphs[0].qas[2]`.
    """
    file = f"{option}: {printed(path)}"
    tree = parse_json("\n".join(line for _, line in read_lines(path, option)), file)
    if not isinstance(tree, dict):
        raise InputError(f"{file} must hold an object with the member 'data' (SQuAD), not {shown(tree)}")
    questions: list[Question] = []
    places: dict[str, str] = {}
    for place, context, entry in _entries(tree, file):
        question = _question(place, context, entry)
        if question.id in places:
            raise InputError(f"{place}: the id {shown(question.id)} is that of {places[question.id]} too")
        places[question.id] = place.removeprefix(f"{file}: ")
        questions.append(question)
    if not questions:
        raise InputError(f"{file} has no questions; it needs at least one")
    return questions


def _entries(tree: dict[str, Any], file: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(Place, context, entry of `qas`) of every question."""
    for i, article in enumerate(_member(tree, "data", list, file)):
        at = f"{file}: data[{i}]"
        for j, paragraph in enumerate(_member(article, "paragraphs", list, at)):
            at = f"{file}: data[{i}].paragraphs[{j}]"
            context = _text(paragraph, "context", at)
            for k, entry in enumerate(_member(paragraph, "qas", list, at)):
                yield f"{at}.qas[{k}]", context, entry


def _question(place: str, context: str, entry: Any) -> Question:
    identity, question = _text(entry, "id", place), _text(entry, "question", place)
    impossible = _member(entry, "is_impossible", bool, place) if "is_impossible" in entry else False
    given = _member(entry, "answers", list, place) if "answers" in entry else []
    if given and impossible:
        raise InputError(f"{place} has answers though is_impossible is true; one of them must go")
    answers = [_answer(answer, context, f"{place}.answers[{n}]") for n, answer in enumerate(given)]
    return Question(place, identity, question, context, answers, impossible)


def _answer(answer: Any, context: str, place: str) -> Answer:
    text, start = _text(answer, "text", place), _member(answer, "answer_start", int, place)
    if start >= 0 and context.startswith(text, start):
        return Answer(text, start)
    starts = [at for at in range(len(context)) if context.startswith(text, at)]
    if not starts:
        right = "and nowhere else"
    elif len(starts) == 1:
        right = f"but at {starts[0]}"
    else:
        right = f"but at {', '.join(map(str, starts[:5]))}{', ...' if len(starts) > 5 else ''}"
    there = shown(context[start : start + len(text)]) if 0 <= start < len(context) else "nothing"
    raise InputError(
        f"{place}: the answer {shown(text)} is not at answer_start {shown(start)} of the context, which has {there} "
        f"there, {right}"
    )


_IN_WORDS = {list: "a list", str: "a string", bool: "true or false", int: "an integer"}


def _member(value: Any, name: str, kind: type, place: str) -> Any:
    """A member of an object, of this very type."""
    if not isinstance(value, dict):
        raise InputError(f"{place} must be an object, not {shown(value)}")
    if name not in value:
        raise InputError(f"{place} has no {name!r}")
    if type(value[name]) is not kind:
        raise InputError(f"{place}.{name} must be {_IN_WORDS[kind]}, not {shown(value[name])}")
    return value[name]


def _text(value: Any, name: str, place: str) -> str:
    text: str = check_text(_member(value, name, str, place), f"{place}.{name}")
    if not text.strip():
        raise InputError(f"{place}.{name} is blank")
    return text
