"""Values that CLDR (through Babel) writes in English and German: what the embedded data is made of."""

import datetime
import functools
import hashlib
import random
from collections.abc import Callable
from typing import Any

from babel import Locale, dates

Pair = tuple[str, str]

CURRENCIES = (
    ("EUR USD GBP " * 4) + "CHF JPY SEK NOK DKK CAD AUD NZD INR CNY BRL MXN KRW ZAR THB HUF ISK TRY EGP MAD"
).split()

# Codes of names that German uses with an article: they stand only where a form without one is right, after a colon.
_WITH_ARTICLE = (
    "AC AE AN AQ AX BQ BS BV CC CF CH CK CP CX DG DO FK FO GB GG GS HM IC IM IO IQ IR JE KM KY LB MD MH MN MP MV NE NF "
    "NL PH PM PN PS SB SC SD SK SS TC TD TF TR UA UM US VA VG VI XK YE"
)
_NO_COUNTRY = "EA EU EZ QO UN XA XB ZZ"


def plain(text: str) -> str:
    """CLDR's thin and no-break spaces as plain ones."""
    return " ".join(text.split())


@functools.cache
def reserved(category: str, value: str, percent: int) -> bool:
    """Whether a value is one of the so many percent that occur in held-out sentences of its category only."""
    digest = hashlib.sha256(f"{category} {value}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < percent


def both(form: Callable[..., str], *arguments: Any, **options: Any) -> Pair:
    """What one of Babel's functions gives for English and for German."""
    return form(*arguments, locale="en", **options), form(*arguments, locale="de", **options)


def day(rng: random.Random) -> datetime.date:
    """A day of the years from 1980 to 2034."""
    return datetime.date(1980, 1, 1) + datetime.timedelta(rng.randrange(365 * 55))


def clock(rng: random.Random) -> Pair:
    """A time of day, on a five-minute mark more often than not."""
    minute = rng.choice((rng.randrange(60), 5 * rng.randrange(12), 15 * rng.randrange(4)))
    return both(dates.format_time, datetime.time(rng.randrange(24), minute), "short")


@functools.cache
def country_names() -> tuple[list[Pair], list[Pair]]:
    """Countries and territories: all, and those that German uses without an article."""
    names = _names("territories")
    countries = {code: name for code, name in names.items() if code not in _NO_COUNTRY}
    return list(countries.values()), [name for code, name in countries.items() if code not in _WITH_ARTICLE]


@functools.cache
def language_names() -> list[Pair]:
    """Languages that have a code of two letters."""
    return list(_names("languages").values())


def _names(kind: str) -> dict[str, Pair]:
    """Two-letter code -> English and German name, without names that hold a remark or two parts."""
    english, german = (dict(getattr(Locale(locale), kind)) for locale in ("en", "de"))
    codes = sorted(code for code in english if code in german and len(code) == 2 and code.isalpha())
    return {
        code: (english[code], german[code])
        for code in codes
        if not any(mark in f"{english[code]} {german[code]}" for mark in ("&", "(", "SAR", "Sonderverwaltungsregion"))
    }
