"""English requests with an intent and slots, made from CLDR (through Babel): what `train finetune` learns by default.

Values - dates, times, sums of money, quantities, names of countries, languages, currencies, units - stand in
templates. A filling, which is an intent and all values of its slots, is on one side only, training or held out, in
every wording.
"""

import functools
import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

import babel
from babel import dates, numbers, units

from train.data.cldr import CURRENCIES, clock, country_names, day, language_names, plain, reserved

NAME = f"embedded requests (CLDR, Babel {babel.__version__})"

TRAIN_PER_INTENT, HELD_OUT_PER_INTENT = 144, 29
_HELD_OUT_PERCENT = 17

# A slot is a word of its own, never the first one; of each set of slots there are two wordings at least.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "set_reminder": (
        "remind me on {date} at {time} to {task}",
        "remind me to {task} on {date} at {time}",
        "set a reminder to {task} at {time} on {date}",
        "please see to it that I {task} on {date} at {time}",
        "remind me to {task} at {time}",
        "do not let me forget to {task} at {time}",
        "remind me on {date} to {task}",
        "I have to {task} on {date} so please remind me",
    ),
    "set_alarm": (
        "wake me at {time}",
        "set an alarm for {time}",
        "I need to get up at {time}",
        "wake me on {date} at {time}",
        "set an alarm for {time} on {date}",
        "the alarm should ring at {time} on {date}",
    ),
    "set_timer": (
        "set a timer for {duration}",
        "start a countdown of {duration}",
        "tell me when {duration} have passed",
        "let the timer run for {duration}",
    ),
    "convert_units": (
        "convert {quantity} to {unit}",
        "how many {unit} are {quantity}",
        "what are {quantity} in {unit}",
        "please express {quantity} in {unit}",
    ),
    "convert_money": (
        "how much is {amount} in {currency}",
        "convert {amount} to {currency}",
        "change {amount} into {currency}",
        "how many {currency} do I get for {amount}",
    ),
    "send_money": (
        "send {amount} to {person}",
        "pay {person} {amount}",
        "I still owe {person} {amount} so please transfer it",
        "pay {person} {amount} on {date}",
        "transfer {amount} to {person} on {date}",
        "send {person} {amount} on {date}",
    ),
    "take_percent": (
        "what is {percent} of {amount}",
        "how much is {percent} of {amount}",
        "calculate {percent} of {amount}",
        "a bill is {amount} so how much is a tip of {percent}",
    ),
    "find_speakers": (
        "who speaks {language} in {country}",
        "how many people speak {language} in {country}",
        "is {language} spoken in {country}",
        "find someone in {country} who speaks {language}",
    ),
    "translate": (
        "how do you say {phrase} in {language}",
        "translate {phrase} into {language}",
        "what is the {language} for {phrase}",
    ),
    "book_flight": (
        "book a flight from {origin} to {destination} on {date}",
        "I want to fly to {destination} from {origin} on {date}",
        "find a seat on a plane from {origin} to {destination} that leaves on {date}",
        "book a flight from {origin} to {destination}",
        "get me on the next plane to {destination} from {origin}",
    ),
    "get_weather": (
        "what will the weather be like in {country} on {date}",
        "will it rain in {country} on {date}",
        "show the forecast of {date} for {country}",
        "is it warm in {country} right now",
        "how is the weather in {country}",
    ),
    "get_time": (
        "what time is it in {country}",
        "how late is it in {country} now",
        "tell me the local time of {country}",
    ),
    "schedule_meeting": (
        "schedule a meeting with {person} on {date} at {time}",
        "put {person} into my calendar at {time} on {date}",
        "I would like to meet {person} on {date} at {time}",
        "arrange a talk with {person} at {time}",
        "schedule a meeting with {person} at {time}",
    ),
    "count_days": (
        "how many days are left before {date}",
        "how far away is {date}",
        "count the days from now until {date}",
    ),
}

_PERSONS = (
    "Ada Alan Anna Ben Carla Chen David Elena Emma Fatima George Grace Hana Ivan James Julia Karim Laura Leo Lucy "
    "Maria Max Mina Nora Oscar Paul Priya Rosa Sam Sofia Tom Yuki"
)
_TASKS = (
    "water the plants|feed the cat|pay the rent|buy milk|take out the rubbish|call my mother|clean the kitchen|"
    "book the hotel|return the library books|wash the car|collect the parcel|take my medicine|walk the dog|"
    "write the report|renew my passport|bake a cake|check the oven|send the invoice|charge the phone|mow the lawn|"
    "visit the dentist|practise the piano|back up my files|order new shoes"
)
_PHRASES = (
    "good morning|good night|thank you|see you soon|how are you|where is the station|happy birthday|I am hungry|"
    "a glass of water|merry Christmas|excuse me|I am lost|what is your name|the bill please|welcome home|well done|"
    "have a nice day|I love you|please help me|long live the king"
)
# Units of one kind: what can be converted into each other.
_UNITS = (
    "length-kilometer length-mile length-meter length-foot length-inch length-centimeter length-yard",
    "mass-kilogram mass-pound mass-ounce mass-gram",
    "volume-liter volume-gallon volume-pint volume-cup volume-milliliter",
    "area-hectare area-acre area-square-meter area-square-foot area-square-kilometer area-square-mile",
    "speed-kilometer-per-hour speed-mile-per-hour speed-knot",
    "energy-joule energy-calorie energy-kilowatt-hour",
)


class Request(NamedTuple):
    """A request: its text, its intent, the words between blanks, and a BIO tag for each word."""

    text: str
    intent: str
    tokens: list[str]
    tags: list[str]


def requests() -> tuple[list[Request], list[Request]]:
    """2,016 requests to train on and 406 held out, of 14 intents equally many; the same on every machine.

    Another release of Babel may give a few other names or forms. Takes about a second.
    """
    rng = random.Random(2018)
    train: list[Request] = []
    held: list[Request] = []
    for intent in TEMPLATES:
        wanted = {False: TRAIN_PER_INTENT, True: HELD_OUT_PER_INTENT}
        seen: set[str] = set()
        while any(wanted.values()):
            template = rng.choice(TEMPLATES[intent])
            filling: dict[str, str] = {}
            for slot in slots_in(template):
                filling[slot] = _MAKERS[slot](rng, filling)
            request, side = filled(intent, template, filling), is_held_out(intent, filling)
            if wanted[side] and request.text not in seen:
                wanted[side] -= 1
                seen.add(request.text)
                (held if side else train).append(request)
    rng.shuffle(train)
    rng.shuffle(held)
    return train, held


def slots_in(template: str) -> list[str]:
    """The slots of a template, in its order."""
    return [word[1:-1] for word in template.split() if word[0] == "{"]


def filled(intent: str, template: str, filling: Mapping[str, str]) -> Request:
    """The request that a template gives with these values."""
    tokens: list[str] = []
    tags: list[str] = []
    for word in template.split():
        slot = word[1:-1] if word[0] == "{" else None
        value = filling[slot].split() if slot else [word]
        tokens += value
        tags += [f"B-{slot}"] + [f"I-{slot}"] * (len(value) - 1) if slot else ["O"]
    return Request(" ".join(tokens), intent, tokens, tags)


def filling_of(request: Request) -> dict[str, str]:
    """Slot -> value of a request, in its order."""
    filling: dict[str, str] = {}
    for token, tag in zip(request.tokens, request.tags, strict=True):
        if tag[0] == "B":
            filling[tag[2:]] = token
        elif tag[0] == "I":
            filling[tag[2:]] += f" {token}"
    return filling


def is_held_out(intent: str, filling: Mapping[str, str]) -> bool:
    """The side of a filling: whether it is held out, in any wording."""
    return reserved(intent, repr(sorted(filling.items())), _HELD_OUT_PERCENT)


def wordings(intent: str, filling: Mapping[str, str]) -> list[Request]:
    """All requests with an intent and just these values."""
    return [filled(intent, t, filling) for t in TEMPLATES[intent] if set(slots_in(t)) == set(filling)]


def with_another_value(request: Request, rng: random.Random) -> Request:
    """A request of the same intent, slots and side, with another value in one slot."""
    filling = filling_of(request)
    while True:
        slot = rng.choice(list(filling))
        others = {name: value for name, value in filling.items() if name != slot}
        other = filling | {slot: _MAKERS[slot](rng, others)}
        if other != filling and is_held_out(request.intent, other) == is_held_out(request.intent, filling):
            return rng.choice(wordings(request.intent, other))


# --- values: functions of a random generator and of the values that other slots already have ---------------------

_Filling = Mapping[str, str]


def _date(rng: random.Random, others: _Filling) -> str:
    return plain(dates.format_date(day(rng), rng.choice(("long", "MMMM d", "EEEE, MMMM d")), locale="en"))


def _number(rng: random.Random) -> float:
    return rng.randint(2, 500) if rng.random() < 0.6 else rng.randint(11, 9999) / 10


def _duration(rng: random.Random, others: _Filling) -> str:
    unit, largest = rng.choice((("second", 90), ("minute", 90), ("hour", 24)))
    return plain(units.format_unit(rng.randint(2, largest), f"duration-{unit}", length="long", locale="en"))


@functools.cache
def _unit_name(unit: str) -> str:
    return plain(units.get_unit_name(unit, length="long", locale="en") or unit)


def _quantity(rng: random.Random, others: _Filling) -> str:
    kinds = [kind.split() for kind in _UNITS]
    possible = [kind for kind in kinds if "unit" not in others or others["unit"] in map(_unit_name, kind)]
    unit = rng.choice([unit for unit in rng.choice(possible) if _unit_name(unit) != others.get("unit")])
    return plain(units.format_unit(_number(rng), unit, length="long", locale="en"))


def _unit(rng: random.Random, others: _Filling) -> str:
    kinds = [[_unit_name(unit) for unit in kind.split()] for kind in _UNITS]
    of_quantity = others["quantity"].partition(" ")[2] if "quantity" in others else None
    possible = [kind for kind in kinds if of_quantity is None or of_quantity in kind]
    return rng.choice([name for name in rng.choice(possible) if name != of_quantity])


def _amount(rng: random.Random, others: _Filling) -> str:
    number = rng.randint(200, rng.choice((10_000, 100_000, 1_000_000))) / 100
    codes = [code for code in CURRENCIES if _currency_name(code) != others.get("currency")]
    code, named = rng.choice(codes), rng.random() < 0.5
    return plain(numbers.format_currency(number, code, locale="en", format_type="name" if named else "standard"))


@functools.cache
def _currency_name(code: str) -> str:
    return plain(numbers.get_currency_name(code, count=2, locale="en"))


def _currency(rng: random.Random, others: _Filling) -> str:
    amount = others.get("amount", "")
    names = [
        _currency_name(code)
        for code in CURRENCIES
        if _currency_name(code) not in amount and numbers.get_currency_symbol(code, locale="en") not in amount
    ]
    return rng.choice(names)


def _percent(rng: random.Random, others: _Filling) -> str:
    return f"{numbers.format_decimal(rng.randint(2, 999) / 10, locale='en')}%"


def _country(rng: random.Random, others: _Filling) -> str:
    names = [name for name, _ in country_names()[1] if "." not in name]  # "St. Lucia" looks like the end of a sentence
    return rng.choice([name for name in names if name not in others.values()])


_MAKERS: dict[str, Callable[[random.Random, _Filling], str]] = {
    "date": _date,
    "time": lambda rng, others: plain(clock(rng)[0]),
    "duration": _duration,
    "task": lambda rng, others: rng.choice(_TASKS.split("|")),
    "person": lambda rng, others: rng.choice(_PERSONS.split()),
    "phrase": lambda rng, others: rng.choice(_PHRASES.split("|")),
    "quantity": _quantity,
    "unit": _unit,
    "amount": _amount,
    "currency": _currency,
    "percent": _percent,
    "country": _country,
    "origin": _country,
    "destination": _country,
    "language": lambda rng, others: rng.choice(language_names())[0],
}
