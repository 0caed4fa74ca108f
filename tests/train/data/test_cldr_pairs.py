"""The embedded translation data: counts, the same everywhere, and no held-out value in training."""

import re
import subprocess
import sys
from collections import Counter, defaultdict
from zlib import crc32

import pytest

from train.data.cldr import country_names, language_names, reserved
from train.data.cldr_pairs import RESERVED_PERCENT, cldr_pairs, examples


@pytest.fixture(scope="module")
def made():
    return examples()


def test_counts_and_unique_sources(made):
    train, held_out = cldr_pairs()
    assert (len(train), len(held_out)) == (sum(not e.held_out for e in made), 1000)
    assert 20_500 < len(train) < 21_500
    sources = [source for source, _ in train + held_out]
    assert len(set(sources)) == len(sources)


def test_no_held_out_value_in_training_sentences_of_its_category(made):
    training = defaultdict(list)
    for example in made:
        if not example.held_out:
            training[example.category].append(example.source)
    texts = {category: "\n".join(sources) for category, sources in training.items()}
    checked = Counter()
    for example in made:
        held = [value for value in example.values if reserved(example.category, value, RESERVED_PERCENT)]
        assert bool(held) == example.held_out, example
        for value in held:
            # "5 liters" in "15 liters" or "2.5 liters", and "¥7" in "¥7,120", are other values.
            assert not re.search(rf"(?<![\w.,:]){re.escape(value)}(?!\w|[.,]\d)", texts[example.category]), value
            assert value in example.source
            checked[example.category] += 1
    assert len(checked) == 11 and min(checked.values()) >= 30


def test_every_name_is_in_training_alone(made):
    single = {example.source for example in made if not example.values}
    assert not any(example.held_out for example in made if not example.values)
    countries, without_article = country_names()
    assert len(countries) > 200 and len(without_article) > 150 and len(language_names()) > 150
    assert all(f"Country: {name}." in single for name, _ in countries)
    assert all(f"Language: {name}." in single for name, _ in language_names())
    assert ("Switzerland", "Schweiz") in countries and ("Switzerland", "Schweiz") not in without_article


def test_plain_short_prose(made):
    for example in made:
        for side in (example.source, example.target):
            assert side == " ".join(side.split()) and "{" not in side and side[-1] == "."
            assert len(side.split()) <= 20


def test_sentences_hold_the_forms_of_both_languages(made):
    target = {example.source: example.target for example in made}
    day = r"([A-Z][a-z]+) (\d+), (\d{4})"
    dates = [(re.search(day, s), t) for s, t in target.items() if re.fullmatch(rf"The meeting is on {day}\.", s)]
    assert len(dates) > 100
    for match, german in dates:
        assert re.fullmatch(rf"Das Treffen ist am {match[2]}\. \w+ {match[3]}\.", german)
    afternoon = {s: t for s, t in target.items() if re.fullmatch(r"It is now \d+:\d\d PM\.", s)}
    assert afternoon
    for source, german in afternoon.items():
        hour, minute = map(int, re.findall(r"\d+", source))
        assert german == f"Es ist jetzt {hour % 12 + 12}:{minute:02d} Uhr."


def test_the_same_in_another_process(made):
    program = (
        "from zlib import crc32; from train.data.cldr_pairs import examples; print(crc32(repr(examples()).encode()))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(other.stdout) == crc32(repr(made).encode())
