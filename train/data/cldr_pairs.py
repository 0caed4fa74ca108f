"""English-German sentences made from CLDR (through Babel): what `train translate` learns when it is given no data.

Dates, times, amounts and names of countries and languages stand in templates. A value - a date, an amount, a list of
names - is reserved for the held-out pairs by a hash of its English form, so that no training sentence holds it.
Each name alone does occur in training, since nothing else could tell a model its translation.
"""

import datetime
import random
from collections.abc import Callable
from typing import NamedTuple

import babel
from babel import dates, lists, numbers, units

from train.data.cldr import CURRENCIES, Pair, both, clock, country_names, day, language_names, plain, reserved

NAME = f"embedded (CLDR, Babel {babel.__version__})"

RESERVED_PERCENT = 6


class Example(NamedTuple):
    """A pair of sentences and the values in its English side; `held_out` if one of those is reserved."""

    category: str
    values: tuple[str, ...]
    source: str
    target: str
    held_out: bool


# A template holds {} once for each value; the German ones are built such that the form which CLDR gives fits.
_DATE = (
    ("The meeting is on {}.", "Das Treffen ist am {}."),
    ("The contract ends on {}.", "Der Vertrag endet am {}."),
    ("She was born on {}.", "Sie wurde am {} geboren."),
    ("The letter of {} has arrived.", "Der Brief vom {} ist angekommen."),
    ("We are closed on {}.", "Am {} haben wir geschlossen."),
    ("The school opened on {}.", "Die Schule wurde am {} eröffnet."),
    ("Please reply by {}.", "Bitte antworten Sie bis zum {}."),
    ("The law has been in force since {}.", "Das Gesetz ist seit dem {} in Kraft."),
    ("The museum has been closed since {}.", "Das Museum ist seit dem {} geschlossen."),
    ("My brother married on {}.", "Mein Bruder hat am {} geheiratet."),
    ("The invoice was issued on {}.", "Die Rechnung wurde am {} ausgestellt."),
    ("The doctor will see you on {}.", "Der Arzt empfängt Sie am {}."),
)
_WEEKDAY = (
    ("Date of departure: {}.", "Tag der Abreise: {}."),
    ("The new date is {}.", "Der neue Termin ist {}."),
    ("Next meeting: {}.", "Nächstes Treffen: {}."),
)
_TIME = (
    ("The train leaves at {}.", "Der Zug fährt um {} Uhr ab."),
    ("We will meet at {}.", "Wir treffen uns um {} Uhr."),
    ("The film begins at {}.", "Der Film beginnt um {} Uhr."),
    ("It is now {}.", "Es ist jetzt {} Uhr."),
    ("She called me at {}.", "Sie hat mich um {} Uhr angerufen."),
    ("The shop closes at {}.", "Das Geschäft schließt um {} Uhr."),
    ("The alarm clock rings at {}.", "Der Wecker klingelt um {} Uhr."),
    ("Dinner is served at {}.", "Das Abendessen wird um {} Uhr serviert."),
    ("The accident happened at {}.", "Der Unfall geschah um {} Uhr."),
)
_APPOINTMENT = (
    ("The meeting begins on {} at {}.", "Das Treffen beginnt am {} um {} Uhr."),
    ("The plane lands on {} at {}.", "Das Flugzeug landet am {} um {} Uhr."),
    ("Your appointment is on {} at {}.", "Ihr Termin ist am {} um {} Uhr."),
    ("The message was sent on {} at {}.", "Die Nachricht wurde am {} um {} Uhr gesendet."),
    ("The concert starts on {} at {}.", "Das Konzert fängt am {} um {} Uhr an."),
    ("The storm reached the coast on {} at {}.", "Der Sturm erreichte die Küste am {} um {} Uhr."),
)
_MONTH = (
    ("The bridge was finished in {}.", "Die Brücke wurde im {} fertiggestellt."),
    ("He moved to Berlin in {}.", "Er zog im {} nach Berlin."),
    ("The book appeared in {}.", "Das Buch ist im {} erschienen."),
    ("Prices fell in {}.", "Im {} sind die Preise gefallen."),
    ("Their daughter was christened in {}.", "Ihre Tochter wurde im {} getauft."),
    ("Elections were held in {}.", "Im {} fanden Wahlen statt."),
)
_INTERVAL = (
    ("The course ({}) is full.", "Der Kurs ({}) ist ausgebucht."),
    ("Holidays: {}.", "Ferien: {}."),
    ("Duration of the exhibition: {}.", "Dauer der Ausstellung: {}."),
    ("The following period was chosen: {}.", "Der folgende Zeitraum wurde gewählt: {}."),
    ("Renovation of the kitchen: {}.", "Renovierung der Küche: {}."),
    ("The festival ({}) attracted many visitors.", "Das Festival ({}) zog viele Besucher an."),
)
_HOURS = (
    ("Opening hours: {}.", "Öffnungszeiten: {}."),
    ("Visiting hours of the hospital: {}.", "Besuchszeiten des Krankenhauses: {}."),
    ("The lecture ({}) takes place in the large hall.", "Die Vorlesung ({}) findet im großen Saal statt."),
    ("Working hours: {}.", "Arbeitszeiten: {}."),
    ("Swimming pool ({}): children free of charge.", "Schwimmbad ({}): Kinder kostenlos."),
    ("Night shift of the nurses: {}.", "Nachtschicht der Pflegekräfte: {}."),
)
# Unit, the largest number of it, the sentences.
_QUANTITY = (
    ("length-kilometer", 9000, ("The road is {} long.", "Die Straße ist {} lang.")),
    ("length-kilometer", 90, ("We have walked {} today.", "Wir sind heute {} gelaufen.")),
    ("length-meter", 500, ("The tower is {} high.", "Der Turm ist {} hoch.")),
    ("length-meter", 500, ("The river is {} wide here.", "Der Fluss ist hier {} breit.")),
    ("length-centimeter", 300, ("The table is {} wide.", "Der Tisch ist {} breit.")),
    ("mass-kilogram", 60, ("The suitcase weighs {}.", "Der Koffer wiegt {}.")),
    ("mass-kilogram", 60, ("He bought {} of potatoes.", "Er hat {} Kartoffeln gekauft.")),
    ("mass-gram", 900, ("The letter weighs {}.", "Der Brief wiegt {}.")),
    ("mass-gram", 900, ("Add {} of flour.", "Geben Sie {} Mehl hinzu.")),
    ("volume-liter", 8000, ("The tank holds {}.", "Der Tank fasst {}.")),
    ("volume-liter", 200, ("We need {} of water.", "Wir brauchen {} Wasser.")),
    ("temperature-celsius", 90, ("The temperature is {}.", "Die Temperatur beträgt {}.")),
    ("duration-minute", 200, ("The journey takes {}.", "Die Fahrt dauert {}.")),
    ("duration-minute", 90, ("He waited {} for the bus.", "Er hat {} auf den Bus gewartet.")),
    ("duration-hour", 24, ("The flight takes {}.", "Der Flug dauert {}.")),
    ("duration-day", 60, ("The delivery takes {}.", "Die Lieferung dauert {}.")),
    ("speed-mile-per-hour", 300, ("The top speed is {}.", "Die Höchstgeschwindigkeit beträgt {}.")),
    ("area-square-meter", 900, ("The floor area is {}.", "Die Wohnfläche beträgt {}.")),
    ("digital-gigabyte", 500, ("The file is {} in size.", "Die Datei ist {} groß.")),
    ("length-millimeter", 200, ("The screw is {} long.", "Die Schraube ist {} lang.")),
    ("mass-tonne", 900, ("The bridge carries {}.", "Die Brücke trägt {}.")),
    ("volume-milliliter", 900, ("Drink {} of milk.", "Trinken Sie {} Milch.")),
    ("area-hectare", 700, ("The farm covers {} of forest.", "Der Bauernhof umfasst {} Wald.")),
    ("area-square-kilometer", 9000, ("The island measures {}.", "Die Insel misst {}.")),
    ("power-watt", 2000, ("The lamp consumes {}.", "Die Lampe verbraucht {}.")),
    ("energy-kilowatt-hour", 9000, ("The household used {} of electricity.", "Der Haushalt verbrauchte {} Strom.")),
    ("duration-week", 50, ("The strike lasted {}.", "Der Streik dauerte {}.")),
    ("duration-second", 90, ("The runner needed {}.", "Der Läufer brauchte {}.")),
    ("duration-month", 36, ("The prisoner served {}.", "Der Häftling verbüßte {}.")),
    ("duration-year", 90, ("The old king reigned {}.", "Der alte König regierte {}.")),
    ("digital-megabyte", 900, ("The photograph requires {}.", "Das Foto benötigt {}.")),
)
_MONEY = (
    ("The ticket costs {}.", "Die Fahrkarte kostet {}."),
    ("I paid {} for the book.", "Ich habe {} für das Buch bezahlt."),
    ("The bill comes to {}.", "Die Rechnung beträgt {}."),
    ("He still owes me {}.", "Er schuldet mir noch {}."),
    ("The rent is {} a month.", "Die Miete beträgt {} im Monat."),
    ("She saved {} last year.", "Sie hat im letzten Jahr {} gespart."),
    ("The repair of the roof cost {}.", "Die Reparatur des Daches hat {} gekostet."),
    ("Grandmother gave us {} for Christmas.", "Großmutter hat uns zu Weihnachten {} geschenkt."),
    ("The company donated {}.", "Das Unternehmen hat {} gespendet."),
    ("A used bicycle costs {} there.", "Ein gebrauchtes Fahrrad kostet dort {}."),
)
_PERCENT = (
    ("Prices rose by {}.", "Die Preise stiegen um {}."),
    ("The share is {}.", "Der Anteil beträgt {}."),
    ("Turnout was {}.", "Die Wahlbeteiligung lag bei {}."),
    ("We grant a discount of {}.", "Wir gewähren einen Rabatt von {}."),
    ("The interest rate is now {}.", "Der Zinssatz liegt jetzt bei {}."),
    ("Unemployment sank to {}.", "Die Arbeitslosigkeit sank auf {}."),
    ("The humidity is {}.", "Die Luftfeuchtigkeit beträgt {}."),
)
_COUNTRY = (
    ("Our guests come from {}.", "Unsere Gäste kommen aus {}."),
    ("She lives in {}.", "Sie lebt in {}."),
    ("Tomorrow they will travel to {}.", "Morgen reisen sie nach {}."),
    ("The weather in {} is good.", "Das Wetter in {} ist gut."),
    ("I have never been to {}.", "Ich war noch nie in {}."),
)
_COUNTRY_NAMED = (
    ("Country: {}.", "Land: {}."),
    ("Country of origin: {}.", "Herkunftsland: {}."),
    ("Address: {}.", "Anschrift: {}."),
)
_COUNTRIES = (
    ("Participating countries: {}.", "Teilnehmende Länder: {}."),
    ("Stops on the journey: {}.", "Stationen der Reise: {}."),
    ("The following countries have agreed: {}.", "Folgende Länder haben zugestimmt: {}."),
    ("Branches of the bank: {}.", "Niederlassungen der Bank: {}."),
    ("Our partners abroad: {}.", "Unsere Partner im Ausland: {}."),
)
_JOURNEY = (
    ("The ship sails {}.", "Das Schiff fährt {}."),
    ("He flew {}.", "Er flog {}."),
    ("The parcel is on its way {}.", "Das Paket ist unterwegs {}."),
    ("The family moved {}.", "Die Familie zog {}."),
    ("Birds migrate every autumn {}.", "Vögel ziehen jeden Herbst {}."),
)
_LANGUAGE = (
    ("She speaks {}.", "Sie spricht {}."),
    ("The book is available in {}.", "Das Buch ist auf {} erhältlich."),
    ("He is learning {}.", "Er lernt {}."),
    ("Language: {}.", "Sprache: {}."),
)
_LANGUAGES = (
    ("She speaks {}.", "Sie spricht {}."),
    ("We offer courses in {}.", "Wir bieten Kurse in {} an."),
    ("The languages of the conference are {}.", "Die Sprachen der Konferenz sind {}."),
    ("He wants to learn {}.", "Er möchte {} lernen."),
    ("The instructions were printed in {}.", "Die Anleitung wurde auf {} gedruckt."),
    ("Our teacher understands {}.", "Unsere Lehrerin versteht {}."),
)


def cldr_pairs() -> tuple[list[Pair], list[Pair]]:
    """English and German: 21,000 pairs to train on and 1,000 held out, the same on every machine.

    Another release of Babel may give a few other names or forms. Takes about a second.
    """
    train: list[Pair] = []
    held_out: list[Pair] = []
    for example in examples():
        (held_out if example.held_out else train).append((example.source, example.target))
    return train, held_out


def examples() -> list[Example]:
    """All pairs with their category and values, shuffled; English sentences are unique."""
    rng = random.Random(2017)
    made = _single_names()
    seen = {example.source for example in made}
    for category, make, train, held_out in _CATEGORIES:
        wanted = {False: train, True: held_out}
        for _ in range(100 * (train + held_out)):
            example = _example(category, *make(rng))
            if wanted[example.held_out] and example.source not in seen:
                wanted[example.held_out] -= 1
                seen.add(example.source)
                made.append(example)
            if not any(wanted.values()):
                break
    rng.shuffle(made)
    return made


def _example(category: str, template: Pair, *values: Pair) -> Example:
    """Fills a template with (English, German) values."""
    source, target = (plain(template[side].format(*(value[side] for value in values))) for side in (0, 1))
    english = tuple(plain(value[0]) for value in values)
    return Example(
        category, english, source, target, any(reserved(category, value, RESERVED_PERCENT) for value in english)
    )


# --- values: functions of a random generator that give a template and (English, German) values ---


def _date(rng: random.Random) -> tuple[Pair, Pair]:
    date = day(rng)
    value = both(dates.format_date, date, "long")
    if rng.random() < 0.8:
        return rng.choice(_DATE), value
    source, target = rng.choice(_WEEKDAY)  # the weekday goes into the template: it is no part of the value
    weekday, weekday_de = both(dates.format_date, date, "EEEE")
    return (source.format(weekday + ", {}"), target.format(weekday_de + ", {}")), value


def _time(rng: random.Random) -> tuple[Pair, Pair]:
    return rng.choice(_TIME), clock(rng)


def _appointment(rng: random.Random) -> tuple[Pair, Pair, Pair]:
    return rng.choice(_APPOINTMENT), both(dates.format_date, day(rng), "long"), clock(rng)


def _month(rng: random.Random) -> tuple[Pair, Pair]:
    return rng.choice(_MONTH), both(dates.format_skeleton, "yMMMM", day(rng))


def _interval(rng: random.Random) -> tuple[Pair, Pair]:
    first = day(rng)
    last = first + datetime.timedelta(rng.randint(2, rng.choice((9, 90))))
    return rng.choice(_INTERVAL), both(dates.format_interval, first, last, "yMMMd")


def _hours(rng: random.Random) -> tuple[Pair, Pair]:
    first = rng.randrange(5 * 4, 20 * 4)
    last = rng.randrange(first + 2, 23 * 4)
    start, end = (datetime.time(quarter // 4, quarter % 4 * 15) for quarter in (first, last))
    english = dates.format_interval(start, end, "hm", locale="en")
    return rng.choice(_HOURS), (english, dates.format_interval(start, end, "Hm", locale="de"))


def _quantity(rng: random.Random) -> tuple[Pair, Pair]:
    unit, largest, template = rng.choice(_QUANTITY)
    number = rng.randint(2, largest) if rng.random() < 0.6 else rng.randint(11, 10 * largest) / 10
    return template, both(units.format_unit, number, unit, length="long")


def _money(rng: random.Random) -> tuple[Pair, Pair]:
    amount = rng.randint(200, rng.choice((10_000, 100_000, 1_000_000))) / 100
    kind = rng.choice(("standard", "name"))
    return rng.choice(_MONEY), both(numbers.format_currency, amount, rng.choice(CURRENCIES), format_type=kind)


def _percent(rng: random.Random) -> tuple[Pair, Pair]:
    share = rng.randint(2, 999) / 10
    english, german = both(numbers.format_decimal, share)
    return rng.choice(_PERCENT), (f"{english}%", f"{german} %")


def _single_names() -> list[Example]:
    """Each country and each language in several sentences, all for training."""
    countries, without_article = country_names()
    uses = [("country", _COUNTRY, without_article), ("country", _COUNTRY_NAMED, countries)]
    uses.append(("language", _LANGUAGE, language_names()))
    return [
        Example(category, (), source.format(name), target.format(name_de), False)
        for category, templates, names in uses
        for source, target in templates
        for name, name_de in names
    ]


def _countries(rng: random.Random) -> tuple[Pair, Pair]:
    countries, without_article = country_names()
    if rng.random() < 0.5:
        (start, start_de), (end, end_de) = rng.sample(without_article, 2)
        return rng.choice(_JOURNEY), (f"from {start} to {end}", f"von {start_de} nach {end_de}")
    return rng.choice(_COUNTRIES), _listed(rng.sample(countries, 3))


def _languages(rng: random.Random) -> tuple[Pair, Pair]:
    return rng.choice(_LANGUAGES), _listed(rng.sample(language_names(), rng.choice((2, 3))))


def _listed(names: list[Pair]) -> Pair:
    english, german = zip(*names, strict=True)
    return lists.format_list(english, locale="en"), lists.format_list(german, locale="de")


# Category, its maker, training pairs, held-out pairs.
_CATEGORIES: tuple[tuple[str, Callable[[random.Random], tuple[Pair, ...]], int, int], ...] = (
    ("date", _date, 3600, 200),
    ("time", _time, 1700, 80),
    ("appointment", _appointment, 2000, 120),
    ("month", _month, 500, 30),
    ("interval", _interval, 1700, 100),
    ("hours", _hours, 1100, 70),
    ("quantity", _quantity, 2800, 140),
    ("money", _money, 2200, 130),
    ("percent", _percent, 600, 30),
    ("countries", _countries, 1200, 50),
    ("languages", _languages, 1200, 50),
)
