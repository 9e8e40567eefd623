"""Values of the `extract` recipe: people, companies, dates, prices, and records made of them.

Word lists are in `data/extract_words.yaml`, most names of people come from Faker. A training world and a held-out world
share no name and no word. A drawn value is the span that the answer repeats; its forms are how a sentence prints it.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from zlib import crc32

from train.recipes.extract_grammar import FIELDS, Facts, capitalize_first, slot_fields
from train.recipes.text_data import DATA, read_yaml, words

_MONTHS = "January February March April May June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_HOURS = "one two three four five six seven eight nine ten eleven".split()
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four"
).split()

_ONSETS = (
    "b bh bl c ch cl chr d dh dj dr dw f fl fr g gh gl gn gr gw h hj hr j k kh kl kn kr kv kw l ll m mb mw n nd ng nk ny "
    "p ph pl pr ps q qu r rh s sc sch sh sk sl sm sn sp st str sv sz t th tl tr ts tw ty tz v vl vr w wh wr x y z zh zw"
).split()
_MIDDLES = (
    (
        "a e i o u y aa ae ai ao au ay ea ee ei eo eu ey ia ie io iu oa oe oi oo ou oy ua ue ui uo uu á é í ó ú ä ö ü å ø ã ç ñ "
        "ab ac ad af ag ak al am an ap ar as at av az eb ed eg ek el em en er es et ev ib id ig ik il im in ir is it iv "
        "ob od og ok ol om on or os ot ov ub ud ug uk ul um un ur us ut"
    )
    .replace(" ç", "")
    .replace(" ñ", "")
    .split()
)

ValuesAndForms = tuple[dict[str, str | int], dict[str, str]]  # of a record


@cache
def word_lists(world: str) -> Mapping[str, tuple[str, ...]]:
    """The word lists of "train", of "held_out" or of "both", by name."""
    return {name: words(text) for name, text in read_yaml(DATA / "extract_words.yaml")[world].items()}


def _lists(held_out: bool) -> Mapping[str, tuple[str, ...]]:
    return word_lists("held_out" if held_out else "train")


@dataclass(frozen=True)
class Names:
    """Given names by sex, and surnames."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    surnames: tuple[str, ...]


@cache
def _draw_names(locale: str, seed: int, count: int) -> Names:
    """`count` names of one of Faker's locales, with repetitions."""
    from faker import Faker

    fake = Faker(locale)
    fake.seed_instance(seed)
    rows = [(fake.first_name_female(), fake.first_name_male(), fake.last_name()) for _ in range(count)]
    return Names(*zip(*rows, strict=True))


@cache
def names(held_out: bool) -> Names:
    """Names of one world, from its locales and its part of the English ones; no held-out name is a training name."""
    english_locales, locales = word_lists("both")["english_locales"], _lists(held_out)["locales"]
    english = [_draw_names(locale, 1000 + i, 1500) for i, locale in enumerate(english_locales)]
    foreign = [_draw_names(locale, 1000 + i, 60) for i, locale in enumerate(locales, start=len(english_locales))]
    training = names(False) if held_out else Names((), (), ())

    def pool(part: str, banned: Iterable[str]) -> tuple[str, ...]:
        # English names are common in visitors' texts, so both worlds have some: a checksum holds out a quarter.
        found = {name for drawn in english for name in getattr(drawn, part) if _is_held_out(name) == held_out}
        found |= {name for drawn in foreign for name in getattr(drawn, part)}
        found = {name for name in found.difference(banned) if _is_latin_word(name.replace("-", ""))}
        found |= set() if held_out else set(word_lists("more_names")[part])
        return tuple(sorted(name for name in found if 2 < len(name) < 13))

    given = training.women + training.men
    return Names(pool("women", given), pool("men", given), pool("surnames", training.surnames))


def _is_latin_word(text: str) -> bool:
    return text.isalpha() and all(char.isascii() or unicodedata.name(char).startswith("LATIN") for char in text)


def _is_held_out(english_name: str) -> bool:
    return crc32(english_name.encode()) % 4 == 0


@dataclass(frozen=True)
class Person:
    """A name as it is written, its plain first and last part, and the sex for pronouns and titles."""

    full: str
    first: str
    last: str
    woman: bool


def _invented_name(rng: random.Random, held_out: bool) -> str:
    """A pronounceable word that is nobody's name; the two worlds end it in different letters."""
    both = word_lists("both")
    ends = _lists(held_out)["name_ends"]
    rare = not held_out and rng.random() < 0.5  # syllables of other languages
    onsets, middles = (_ONSETS, _MIDDLES) if rare else (both["name_onsets"], both["name_middles"])
    syllables = [rng.choice(onsets) + rng.choice(middles) for _ in range(rng.choice((1, 1, 2)))]
    end = rng.choice(ends)
    return ("".join(syllables) + end).capitalize()


def _person(rng: random.Random, held_out: bool, rare: bool = False) -> Person:
    """A person with a name in two parts mostly, also with initials, double names, titles, invented names."""
    pool = names(held_out)
    woman = rng.random() < 0.5
    first = rng.choice(pool.women if woman else pool.men)
    last = _invented_name(rng, held_out) if rng.random() < (0.7 if rare else 0.15) else rng.choice(pool.surnames)
    if rng.random() < (0.5 if rare else 0.06):
        first = _invented_name(rng, held_out)
    roll = rng.random()
    full = f"{first} {last}"
    if roll < 0.04:
        full = f"{first[0]}. {last}"
    elif roll < 0.08:
        full = f"{first} {rng.choice('ABCDEGHJKLMRST')}. {last}"
    elif roll < 0.11:
        full = f"{first} {last}-{rng.choice(pool.surnames)}"
    elif roll < 0.16:
        full = f"{rng.choice(('Dr.', 'Dr', 'Prof.', 'Dr.') if held_out else ('Dr.', 'Dr', 'Prof.'))} {full}"
    elif roll < 0.19:
        particles = ("van der", "del", "ten") if held_out else _PARTICLES
        full = f"{first} {rng.choice(particles)} {last}"
    elif roll < 0.33 and not held_out:
        titles = _WOMEN_TITLES if woman else _MEN_TITLES
        middle = rng.choice(pool.women if woman else pool.men)
        initials = rng.choice("ABCDEFGHIJKLMNOPRSTVWYZ"), rng.choice("ABCDEFGHJKLMNPRSTW")
        full = rng.choice(
            (first, first, f"{rng.choice(titles)} {last}", f"{rng.choice(titles)} {full}", f"{first} {middle} {last}",
             f"{initials[0]}. {initials[1]}. {last}", f"{initials[0]}.{initials[1]}. {last}", f"{first} {rng.choice(pool.surnames)} {last}",
             f"{first}-{middle} {last}", f"{full} {'' if woman else 'Jr.'}".strip(), last.upper() + " " + first, full.upper(),
             f"{first} '{_invented_name(rng, held_out)[:5]}' {last}", f"{rng.choice(pool.women)} {initials[0]}.")
        )  # fmt: skip
    return Person(full, first, last, woman)


_PARTICLES = ("van", "de", "von", "da", "bin", "al", "el", "di", "dos", "von der", "de la", "van den", "af", "zu", "Mac", "ibn", "le", "St.")  # fmt: skip
_WOMEN_TITLES = ("Mrs.", "Ms.", "Ms", "Mrs", "Miss", "Madame", "Frau", "Signora", "Señora", "Dame", "Sister", "Aunt", "Lady", "Dr.", "Prof. Dr.", "Pastor", "Judge", "Rev.")  # fmt: skip
_MEN_TITLES = ("Mr.", "Mr", "Mr.", "Monsieur", "Herr", "Signor", "Señor", "Sir", "Brother", "Uncle", "Lord", "Dr.", "Prof. Dr.", "Father", "Captain", "Rev.")  # fmt: skip


def _company(rng: random.Random, held_out: bool, rare: bool = False) -> str:
    """A company: one or two words, and often a line of business or a legal form."""
    lists = _lists(held_out)
    invented = rng.random() < (0.8 if rare else 0.3 if held_out else 0.45)
    core = _invented_name(rng, held_out) if invented else rng.choice(lists["company_words"])
    roll = rng.random()
    if roll < 0.3:
        return core
    if roll < 0.75 if held_out else roll < 0.6:
        return f"{core} {rng.choice(lists['businesses'])}"
    if held_out or roll < 0.82:
        if roll < 0.87 if held_out else roll < 0.72:
            return f"{core} {rng.choice(lists['legal_forms'])}"
        return f"{rng.choice(names(held_out).surnames)} {rng.choice(lists['and_sons'])}"
    other, letters = (
        _invented_name(rng, held_out),
        "".join(rng.choices("ABCDEFGHIKLMNOPRSTUVWXYZ", k=rng.choice((2, 3, 3, 4)))),
    )
    business = rng.choice(lists["businesses"])
    return rng.choice(
        (f"{core} & {other}", f"{core}-{other}", f"{letters} {business}", letters, f"{letters} {core}", f"{business} {core}",
         f"{core} {rng.randint(2, 99)}", f"{core}{business.split()[0].lower()}", f"{core.replace(' ', '')}{business.split()[0]}",
         f"{core} {business} {rng.choice(lists['legal_forms'])}", f"{core}, {other} & {rng.choice(names(held_out).surnames)}",
         f"{rng.choice(lists['cities'])} {business}", f"{core}'s {business}", f"{core} of {rng.choice(lists['cities'])}",
         f"Studio {core}", f"Casa {core}", f"Atelier {core}", f"Hotel {core}", f"Maison {core}", f"{core.lower()}.{rng.choice(('io', 'com', 'ai'))}")
    )  # fmt: skip


def _plain(text: str) -> str:
    """The letters and digits of a text without accents, in lower case: what an address may hold."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ø", "o").replace("ł", "l").replace("ß", "ss"))
    return "".join(char for char in decomposed.lower() if char.isascii() and char.isalnum())


def _email(rng: random.Random, held_out: bool, person: Person, company: str, rare: bool = False) -> str:
    """An address made of the name or of a function, at the company ("" for none), a provider or another company.

    A third of training's follow from nothing in the text, so that they have to be copied letter by letter.
    """
    lists = _lists(held_out)
    first, last = _plain(person.first) or "x", _plain(person.last) or "y"
    if not held_out and rng.random() < (0.8 if rare else 0.35):
        return _strange_email(rng, lists)
    local = rng.choice(
        (f"{first}.{last}", f"{first[0]}.{last}", f"{first}{last}", first, last, f"{first[0]}{last}", f"{first}_{last}",
         f"{first}{rng.randint(1, 99)}", rng.choice(lists["mailboxes"]))
    )  # fmt: skip
    if company and rng.random() < 0.5:
        domain = _plain(company) if rng.random() < 0.6 else _plain(company.split()[0]) or _plain(company)
        return f"{local}@{domain}.{rng.choice(lists['endings'])}"
    if rng.random() < 0.5:
        return f"{local}@{rng.choice(lists['providers'])}"
    return f"{local}@{_plain(rng.choice(lists['company_words']))}.{rng.choice(lists['endings'])}"


def _strange_email(rng: random.Random, lists: Mapping[str, tuple[str, ...]]) -> str:
    """An address of invented words, initials and numbers."""
    word, other, host, domain = (_plain(_invented_name(rng, False)) for _ in range(4))
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.choice((2, 2, 3))))
    number = str(rng.choice((rng.randint(1, 99), rng.randint(1950, 2012), rng.randint(100, 99999))))
    local = rng.choice(
        (word, f"{word}.{other}", f"{word}_{other}", f"{word}-{other}", f"{word}{number}", f"{letters}{number}", f"{letters}.{word}",
         f"{letters}_{word}", f"{word}.{letters}", f"{word}+{other}", f"{letters[0]}.{letters[1]}.{word}", f"{number}{word}",
         f"{word}.{number}", f"the.{word}", f"{word}.{rng.choice(lists['mailboxes'])}", letters, f"{word}{other}")
    )  # fmt: skip
    tail = rng.choice(lists["endings"])
    address = rng.choice(
        (f"{local}@{rng.choice(lists['providers'])}", f"{local}@{rng.choice(lists['providers'])}", f"{local}@{domain}.{tail}",
         f"{local}@{domain}.{tail}", f"{local}@{host}-{domain}.{tail}", f"{local}@mail.{domain}.{tail}", f"{local}@{letters}{number}.{tail}",
         f"{local}@{domain}{number[:2]}.{tail}", f"{local}@{letters}.{domain}.{tail}", f"{local}@{host}{domain}.{tail}")
    )  # fmt: skip
    return address.capitalize() if rng.random() < 0.05 else address


def _phone(rng: random.Random, held_out: bool) -> str:
    """A number in one of the world's formats; held-out texts use formats of their own half of the time."""
    shape = rng.choice(_lists(held_out and rng.random() < 0.5)["phones"])
    digits = {"#": 0, "%": 2}  # the lowest digit that may stand there
    return "".join(str(rng.randint(digits[char], 9)) if char in digits else char for char in shape)


def date_forms(rng: random.Random, held_out: bool) -> dict[str, str]:
    """Forms of a date: "raw" is the span, "" adds the article, "on" and "by" add the preposition too."""
    raw, article, preposition = _date(rng, held_out)
    return {"raw": raw, "": article + raw, "on": preposition + article + raw, "by": "by " + article + raw}


def _date(rng: random.Random, held_out: bool) -> tuple[str, str, str]:
    """A date, its article and its preposition."""
    day, month, weekday = rng.randint(1, 28), rng.choice(_MONTHS), rng.choice(_DAYS)
    number, year = _MONTHS.index(month) + 1, rng.choice((2025, 2026, 2026, 2027))
    ordinal = f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
    if held_out and rng.random() < 0.3:
        own = (
            f"{day:02d}.{number:02d}.{year}",
            f"{month[:3]}{'.' * (month != 'May')} {day}",
            f"{day}-{month[:3]}-{year}",
        )
        return rng.choice(own), "", "on "
    roll = rng.random()
    if roll < 0.24:
        return weekday, "", "on "
    if roll < 0.36:
        return f"{rng.choice(('next', 'this', 'next', 'this coming'))} {weekday}", "", ""
    if roll < 0.47:
        near = rng.choice(("tomorrow", "tomorrow", "today", "tonight", "the day after tomorrow"))
        return (near[4:], "the ", "") if near.startswith("the ") else (near, "", "")
    if roll < 0.54:
        return f"{ordinal} of {month}", "the ", "on "
    if roll < 0.66 and not held_out:
        return _special_date(rng, weekday, month, ordinal)
    forms = [
        f"{day} {month}", f"{month} {day}", f"{month} {ordinal}", f"{ordinal} {month}", f"{month[:3]} {day}",
        f"{year}-{number:02d}-{day:02d}", f"{day}/{number}", f"{month} {day}, {year}", f"{weekday[:3]} {day} {month[:3]}",
        f"{day} {month} {year}", f"{weekday}, {month} {day}", f"{weekday} {day} {month}", f"{day}/{number}/{year}",
    ]  # fmt: skip
    if not held_out:
        short = month[:3]
        forms += [
            f"{number}/{day}", f"{day:02d}/{number:02d}/{year}", f"{day}.{number}.", f"{day:02d}.{number:02d}.", f"{day}.{number}.{year}",
            f"{day}.{number}.{year % 100}", f"{day} {short}", f"{day} {short} {year}", f"{ordinal} {short}", f"{short} {ordinal}", f"{short}. {day}",
            f"{year}/{number:02d}/{day:02d}", f"{weekday[:3]} {number}/{day}", f"{weekday} {ordinal}", f"{weekday[:3]} {ordinal}", f"{weekday}, {day} {month}",
            f"{weekday}, {month} {ordinal}", f"{weekday} {ordinal} {month}", f"{weekday}, {day} {month} {year}", f"{weekday}, {month} {day}, {year}",
            f"{weekday[:3]}, {short} {day}", f"{day}-{number}-{year}", f"{day}. {month}", f"{weekday} {day}/{number}", f"{number}-{day}", f"{weekday[:3]}",
        ]  # fmt: skip
    return rng.choice(forms), "", "on "


def _special_date(rng: random.Random, weekday: str, month: str, ordinal: str) -> tuple[str, str, str]:
    """Dates that are no day of a month, and rarer ways to say one."""
    the = rng.choice(
        ((f"{weekday} after next", "the ", "on "), (ordinal, "the ", "on "), (f"first {weekday} in {month}", "the ", "on "),
         (f"last {weekday} of {month}", "the ", "on "), (f"{ordinal} of next month", "the ", "on "), ("first of the month", "the ", "on "),
         ("end of the month", "the ", "at "), ("beginning of " + month, "the ", "at "))
    )  # fmt: skip
    bare = rng.choice(
        ((f"end of {month}", "", "at the "), ("next week", "", ""), ("next month", "", ""), ("this weekend", "", ""), ("next weekend", "", ""),
         (f"mid-{month}", "", "in "), (f"early {month}", "", "in "), (f"late {month}", "", "in "), (month, "", "in "), (f"{weekday} week", "", "on "),
         ("Christmas Eve", "", "on "), ("New Year's Day", "", "on "), ("Easter Monday", "", "on "),
         ("Boxing Day", "", "on "), ("Good Friday", "", "on "), ("New Year's Eve", "", "on "), ("May Day", "", "on "), ("Midsummer Day", "", "on "),
         (f"{weekday} the {ordinal}", "", "on "), (f"{weekday} the {ordinal} of {month}", "", "on "), ("tmrw", "", ""), (weekday[:3], "", "on "),
         (f"week {rng.randint(2, 50)}", "", "in "), (weekday.lower(), "", "on "), (f"coming {weekday}", "", ""))
    )  # fmt: skip
    return the if rng.random() < 0.3 else bare


def _time(rng: random.Random, held_out: bool, bare: bool = False) -> str:
    """A time of day, without "at". bare: "at" stands before it, so it may be a number and no more."""
    hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 30, 30, 40, 45, 50))
    half = rng.choice(("am", "pm", "pm"))
    word = rng.choice(_HOURS)
    if held_out and rng.random() < 0.3:
        return rng.choice((f"{hour}.{minute:02d} {half}", f"twenty past {word}", f"{hour}:{minute:02d} {half[0]}.m.",
                           f"ten to {word}"))  # fmt: skip
    forms = [
        f"{hour}{half}", f"{hour} {half}", f"{rng.randint(7, 20)}:{minute:02d}", f"{rng.randint(7, 20):02d}:{minute:02d}",
        f"{hour}:{minute:02d} {half}", f"{hour}:{minute:02d}{half}", f"{hour} o'clock", f"half past {word}", "noon",
        f"quarter past {word}", f"quarter to {word}", f"{hour} {half.upper()}", f"{word} o'clock",
    ]  # fmt: skip
    if not held_out:
        day_hour = rng.randint(7, 22)
        forms += [
            f"{hour}.{minute:02d}", f"{hour}.{minute:02d}{half}", f"{hour}.{minute:02d} {half}", f"{day_hour}h{minute:02d}", f"{day_hour}h", f"{day_hour:02d}{minute:02d}",
            f"{day_hour}:{minute:02d}", f"{day_hour:02d}:{minute:02d}", f"{day_hour}:{minute:02d}h", f"{hour} {half[0]}.m.", f"{hour}:{minute:02d} {half[0]}.m.", f"half {word}",
            f"{rng.choice(('five', 'ten', 'twenty', 'twenty-five', '10', '20'))} {rng.choice(('past', 'to'))} {word}", f"quarter {rng.choice(('past', 'to'))} {hour}",
            f"half past {hour}", "midday", "midnight", f"{word} in the {rng.choice(('morning', 'evening'))}", f"{hour} in the {rng.choice(('morning', 'afternoon'))}",
            f"{word} {half}", f"{word} thirty", f"{hour}:{minute:02d} {half.upper()}", f"{hour}{half.upper()}", f"{day_hour:02d}:{minute:02d} hrs", f"{day_hour}.{minute:02d}",
        ]  # fmt: skip
        if bare and rng.random() < 0.15:
            forms = [str(hour), word]
    return rng.choice(forms)


def _place_forms(rng: random.Random, held_out: bool) -> dict[str, str]:
    """Forms of a place: "raw" is the span without its article, "" adds the article, "in" the preposition too."""
    lists = _lists(held_out)
    roll = rng.random()
    article = ""
    word = rng.choice(lists["place_words"])
    if not held_out and rng.random() < 0.4:
        word = rng.choice((_invented_name(rng, held_out), rng.choice(names(held_out).surnames)))
    if roll < 0.22:
        number = rng.choice((str(rng.randint(1, 40)), str(rng.randint(100, 499)), rng.choice("ABCDEFGH"),
                             f"{rng.choice('ABC')}{rng.randint(1, 30)}"))  # fmt: skip
        room = rng.choice(lists["rooms"])
        raw, preposition = f"{room} {number}", _ROOM_PREPOSITIONS.get(room.lower(), "in ")
        if not held_out and rng.random() < 0.25:
            raw = rng.choice(
                (f"{raw}, {word} {rng.choice(('Building', 'Hall', 'House'))}", f"Building {rng.choice('ABCDE')}, {raw}", f"{raw}, {rng.choice(('first', 'second', 'third'))} floor",
                 f"{word} Room", f"{raw} at {word} House", f"{raw} of the {rng.choice(lists['bodies'])}")
            )  # fmt: skip
    elif roll < 0.42:
        raw, preposition = rng.choice(lists["cafes"]).format(word=word), "at "
    elif roll < 0.5:
        raw, preposition = rng.choice(lists["online"]), "on "
    elif roll < 0.62:
        raw, preposition = rng.choice(lists["cities"]), "in "
    elif roll < 0.7:
        number = str(rng.randint(1, 160))
        raw, preposition = f"{number} {word} {rng.choice(lists['streets'])}", "at "
        if not held_out and rng.random() < 0.5:
            raw = rng.choice(
                (f"{word}straße {number}", f"{word}weg {number}", f"Via {word} {number}", f"{number} rue {word}", f"Calle {word} {number}", f"{word}gatan {number}",
                 f"{raw}, {rng.choice(lists['cities'])}", f"{word} Street", f"{number}B {word} Road", f"{word}laan {number}", f"ul. {word} {number}", f"{number} Place {word}")
            )  # fmt: skip
    elif roll < 0.78 and not held_out:
        owner = rng.choice((rng.choice(names(held_out).women), rng.choice(names(held_out).men))) + "'s"
        raw, preposition = rng.choice(
            (("my place", "at "), ("your place", "at "), (f"{owner} place", "at "), (f"{owner} office", "in "), ("my office", "in "), ("your office", "in "),
             (f"{owner} kitchen", "in "), (f"{owner} garden", "in "), (f"{owner} flat", "at "), ("my parents' house", "at "), (f"{owner} house", "at "),
             ("your desk", "at "), (f"{owner} studio", "in "), ("my garage", "in "), (f"{owner} workshop", "in "))
        )  # fmt: skip
    elif roll < 0.83 and not held_out:
        article = "the "
        raw, preposition = rng.choice(((f"{word} Hotel", "at "), (f"{word} room", "in "), (f"{word} Inn", "at "), (f"{word} Arms", "at "), (f"{word} office", "in "), (f"Hotel {word}", "at "),
                                       (f"{word} campus", "on "), (f"café in {word} Street", "at "), (f"{word} building", "in "), (f"old {word} factory", "at ")))  # fmt: skip
    else:
        preposition, raw = rng.choice(lists["places"]).split(" ", 1)
        preposition, article = preposition + " ", "the "
    return {"raw": raw, "": article + raw, "in": preposition + article + raw}


_ROOM_PREPOSITIONS = dict.fromkeys(("gate", "pier", "table", "booth"), "at ") | dict.fromkeys(
    ("platform", "floor", "stage", "court"), "on "
)


def _topic_forms(rng: random.Random, held_out: bool) -> dict[str, str]:
    """Forms of a topic: "raw" and "" are the span without an article, "the" adds an article or a possessive."""
    lists = _lists(held_out)
    raw = rng.choice(lists["topics"])
    roll = rng.random()
    if roll < 0.4:
        raw = f"{rng.choice(lists['topic_adjectives'])} {rng.choice(lists['topic_nouns'])}"
    elif roll < 0.55 and not held_out:
        name, noun = (
            rng.choice((_invented_name(rng, held_out), _company(rng, held_out))),
            rng.choice(lists["topic_nouns"]),
        )
        city, day = rng.choice(lists["cities"]), rng.choice(_DAYS)
        raw = rng.choice(
            (f"{name} {noun}", f"{name} {noun}", f"project {name}", f"Project {name}", f"{city} {noun}", f"{noun} in {city}", f"{noun} for {name}", f"move to {city}", f"{name} case",
             f"{noun} and {rng.choice(lists['topic_nouns'])}", f"{rng.choice(lists['topic_nouns'])}, {noun}", f"{name}", f"{day}'s {noun}", f"{city} trip", f"{noun} {rng.choice((2026, 2027))}",
             f"version {rng.randint(2, 9)}.{rng.randint(0, 9)}", f"ticket {rng.randint(100, 9999)}", f"Q{rng.randint(1, 4)} {noun}", f"{noun} of {name}", f"{name}'s {noun}")
        )  # fmt: skip
    # A gerund or a name takes no article; "our" is rarer than "the".
    bare = raw.split()[0].endswith("ing") or raw[0].isupper() or "'s " in raw
    article = (
        "" if bare else rng.choice(("the ", "the ", "our ", "the ") if held_out else ("the ",) * 7 + ("our ",))
    )
    return {"raw": raw, "": raw, "the": article + raw}


def _event_forms(rng: random.Random, held_out: bool) -> dict[str, str]:
    """Forms of an event with a name of its own."""
    raw = rng.choice(_lists(held_out)["events"])
    return {"raw": raw, "": raw, "event": raw, "the": "the " + raw}


def _customer(rng: random.Random, held_out: bool, person: Person, rare: bool) -> tuple[str, str]:
    """Article and name of whoever ordered: a person mostly, a company, a body such as "museum shop"."""
    roll = rng.random()
    if roll < 0.22:
        return "", _company(rng, held_out, rare)
    if roll < 0.36:
        return "the ", rng.choice(_lists(held_out)["bodies"])
    if roll < 0.46:
        return "", person.first
    if roll < 0.56:
        titles = (
            ("Mrs.", "Ms.", "Dr.", "Mrs", "Ms", "Madame")
            if person.woman
            else ("Mr.", "Mr", "Dr.", "Herr", "Prof.")
        )
        return "", f"{rng.choice(titles)} {person.last}"
    return "", person.full


def _price(rng: random.Random, held_out: bool) -> str:
    """An amount with its currency, in one of the world's formats."""
    whole = rng.choice((rng.randint(2, 99), rng.randint(100, 950)))
    cents = rng.choice((0, 5, 25, 49, 50, 75, 90, 95, 99))
    both = f"{whole}.{cents:02d}"
    if held_out and rng.random() < 0.35:
        return rng.choice(
            (f"CHF {both}", f"{whole} pounds", f"US${whole}", f"{whole},{cents:02d} €", f"1,{rng.randint(100, 990)} yen")
        )  # fmt: skip
    forms = [
        f"${both}", f"${whole}", f"{whole} euros", f"€{whole}", f"EUR {whole}", f"£{both}", f"{both} euros", f"{whole} dollars",
        f"${both}", f"{whole} EUR", f"£{whole}", f"€{both}", f"{whole} USD", f"${rng.randint(1, 9)},{rng.randint(100, 990)}",
    ]  # fmt: skip
    if not held_out:
        big, word = (
            f"{rng.randint(1, 9)},{rng.randint(100, 990)}",
            rng.choice(
                (*_NUMBERS[2:], "thirty", "forty", "fifty", "sixty", "ninety", "one hundred", "two hundred")
            ),
        )
        forms += [
            f"{whole} pounds", f"£{whole}", f"{whole} quid", f"{whole} bucks", f"{whole}p", f"{whole} cents", f"{word} euros", f"{word} pounds", f"{word} dollars", f"{whole}€", f"{whole} €",
            f"{both}€", f"{both} €", f"{whole},{cents:02d} €", f"{whole},{cents:02d} EUR", f"€ {both}", f"€ {whole}", f"{whole} GBP", f"GBP {both}", f"US$ {whole}", f"USD {both}", f"CHF {whole}", f"{whole} CHF",
            f"{whole} francs", f"{whole} kr", f"{whole} kroner", f"SEK {whole}", f"{whole} zł", f"PLN {whole}", f"₹{big}", f"Rs {whole}", f"{whole} rupees", f"¥{big}", f"{big} yen", f"R$ {whole}", f"{whole} rand",
            f"₦{big}", f"{whole} lira", f"£{big}", f"€{big}", f"${big}.00", f"{big} euros", f"A${whole}", f"C${both}", f"0.{rng.randint(10, 95)} EUR", f"£0.{rng.randint(10, 99)}", f"{whole} euro", f"{whole} dollar",
            f"{both} GBP", f"£{rng.randint(1, 9)}.{cents:02d}", f"${rng.randint(1, 19)}", f"{rng.randint(1, 20)} euros", f"{rng.randint(1, 9)}k euros", f"{whole} pounds fifty", f"{whole} AED", f"{whole} shekels",
        ]  # fmt: skip
    return rng.choice(forms)


def _plural(noun: str) -> str:
    """The plural of a noun, of its first word if it is "pair of pliers"."""
    if " of " in noun:
        first, rest = noun.split(" of ", 1)
        return f"{_plural(first)} of {rest}"
    if noun.endswith(("shelf", "knife", "scarf", "loaf", "leaf")):
        return noun.rstrip("fe") + "ves"
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _product(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """Singular and plural of a product: a noun with up to two words before it and some after it, or a unit of a good."""
    lists = _lists(held_out)
    roll = rng.random()
    if roll < 0.18:
        unit, content = rng.choice(lists["units"]), rng.choice(lists["contents"])
        front = rng.choice(("", "", "", "", "big ", "small ", "large ", f"{rng.choice((2, 5, 10))}-litre "))
        return f"{front}{unit} of {content}", f"{front}{_plural(unit)} of {content}"
    one = rng.choice(lists["product_nouns"])
    many = _plural(one)
    front = rng.choice(lists["product_adjectives"]) + " " if rng.random() < (0.85 if held_out else 0.7) else ""
    if front and rng.random() < 0.15:
        second = rng.choice(lists["product_adjectives"]) + " "
        front = second + front if second != front else front
    if not held_out and rng.random() < 0.08:
        code = rng.choice(
            (
                _invented_name(rng, held_out),
                f"{rng.choice('ABDKMTXZ')}{rng.randint(2, 900)}",
                f"{_invented_name(rng, held_out)} {rng.randint(2, 90)}",
            )
        )
        front = f"{code} {front}"
    after = " " + rng.choice(lists["after_nouns"]) if rng.random() < 0.07 else ""
    return front + one + after, front + many + after


def _quantity(rng: random.Random, held_out: bool) -> tuple[int, str, str]:
    """A count, how a sentence says it, and how a list writes it."""
    roll = rng.random()
    if roll < 0.16:
        return 1, rng.choice(("a", "a", "a", "one", "1")), "1"
    if roll < 0.22:
        return 12, rng.choice(("a dozen", "twelve", "12", "one dozen")), "12"
    if roll < 0.24:
        return 2, "a couple of", "2"
    if roll < 0.26:
        return 6, "half a dozen", "6"
    if roll < 0.36 and not held_out:
        count, spoken = rng.choice(
            ((1, "a"), (1, "a"), (1, "a single"), (1, "one single"), (1, "just one"), (24, "two dozen"), (36, "three dozen"), (24, "2 dozen"), (100, "a hundred"), (100, "one hundred"),
             (200, "two hundred"), (1000, "a thousand"), (1000, "1,000"), (2500, "2,500"), (1200, "1200"), (50, "fifty"), (30, "thirty"), (40, "forty"), (60, "sixty"), (80, "eighty"), (500, "five hundred"),
             (35, "thirty-five"), (2, "a couple of"), (6, "half a dozen"), (2, "just two"), (3, "another three"), (5, "exactly 5"), (20, "a total of 20"), (4, "4x"), (3, "3x"), (8, "8x"), (2, "2x"), (15, "15 x"))
        )  # fmt: skip
        return count, spoken, str(count)
    many: tuple[int, ...] = (15, 20, 24, 25, 30, 40, 48, 50, 60, 75, 100, 150, 200, 500)
    if not held_out:
        many += (
            rng.randint(13, 99),
            rng.randint(13, 99),
            rng.randint(100, 999),
            rng.randint(13, 24),
            rng.randint(13, 24),
        )
    count = rng.choice((rng.randint(2, 12), rng.randint(2, 12), rng.choice(many)))
    spoken = _NUMBERS[count] if count < (13 if held_out else 25) and rng.random() < 0.5 else str(count)
    return count, spoken, str(count)


def _partner(rng: random.Random, held_out: bool, rare: bool) -> tuple[str, str]:
    """Article and name of whom one meets: one person mostly, also two, a title with a surname, a team."""
    one = _person(rng, held_out, rare)
    roll = rng.random()
    if roll < (0.5 if held_out else 0.36):
        return "", one.full
    if roll < (0.75 if held_out else 0.52):
        return "", one.first
    if roll < (0.83 if held_out else 0.6):
        return "", f"{one.first} and {_person(rng, held_out).first}"
    if roll < (0.91 if held_out else 0.69):
        titles = ("Mrs.", "Ms.", "Dr.") if one.woman else ("Mr.", "Mr", "Dr.")
        return "", f"{rng.choice(titles)} {one.last}"
    if roll < 0.82 and not held_out:
        two, three = _person(rng, held_out), _person(rng, held_out)
        team = rng.choice(_lists(held_out)["teams"])
        kin = rng.choice(
            (
                "grandma",
                "mum",
                "dad",
                "grandpa",
                "HR",
                "accounting",
                "legal",
                "Uncle " + one.first,
                "Aunt " + one.first,
                "marketing",
            )
        )
        return "", rng.choice(
            (kin, kin, kin, f"{one.first}, {two.first} and {three.first}", f"{one.full} and {two.full}", f"{one.first} & {two.first}", f"{one.first} and the {team}", _company(rng, held_out),
             f"{one.first} {one.last[0]}.", f"{one.first}'s {rng.choice(('team', 'mother', 'lawyer', 'boss', 'parents', 'sister'))}", f"{one.first}/{two.first}", f"Drs. {one.last} and {two.last}", f"{one.last}")
        )  # fmt: skip
    return "the ", rng.choice(_lists(held_out)["teams"])


def draw_record(
    kind: str,
    rng: random.Random,
    held_out: bool,
    slots: frozenset[str] = frozenset(),
    rare: bool = False,
) -> Facts:
    """A record of that kind and every slot that the phrases may print.

    slots: those of a frame, whose fields it has then; some fields at random if there are none. rare: names are
    invented.
    """
    person = _person(rng, held_out, rare)
    draw_fields = {"person": _person_fields, "meeting": _meeting_fields, "order": _order_fields}[kind]
    chosen = frozenset().union(*map(slot_fields, slots)) if slots else draw_fields(rng)
    if kind == "person":
        values, forms = _draw_person(rng, held_out, person, chosen, rare)
    elif kind == "meeting":
        values, forms = _draw_meeting(rng, held_out, chosen, slots, rare)
    else:
        values, forms = _draw_order(rng, held_out, person, chosen, rare)
    for name, value in values.items():
        forms.setdefault(name, str(value))
        forms.setdefault("raw " + name, str(value))
    return Facts(kind, values, forms | _context_forms(rng, held_out, person, values))


_TRADES = (
    "textile wine bicycle tax marine kitchen piano railway insurance paper garden energy software steel tea fashion bridge leather solar data boat carpet "
    "pension art coffee toy wedding street pottery antique film forest harbour museum organ radio ski theatre violin water yacht heating lift roof"
).split()
_WORKERS = (
    "engineer dealer teacher consultant inspector technician designer expert trainer buyer restorer salesman importer builder planner researcher "
    "critic merchant tester adviser fitter instructor lawyer photographer student worker guide maker tuner"
).split()


def _city(rng: random.Random, held_out: bool) -> str:
    """A city of the world's list; at times, in training, a town that does not exist."""
    if held_out or rng.random() < 0.82:
        return rng.choice(_lists(held_out)["cities"])
    name = _invented_name(rng, held_out)
    return rng.choice(
        (name, f"Bad {name}", f"San {name}", f"Saint-{name}", f"Upper {name}", f"{name} Falls", f"Port {name}", f"{name}ville", f"{name}burg", f"{name}-on-Sea", f"New {name}", f"{name} Bay", f"{name}dorf",
         f"{name}ton", f"Nova {name}", f"{name} City", f"Mount {name}", f"St. {name}", f"Villa {name}", f"{name}hausen", f"{name} am See", f"Kuala {name}", f"{name}abad", f"El {name}", f"La {name}")
    )  # fmt: skip


def _person_fields(rng: random.Random) -> set[str]:
    return {"name", *rng.sample(FIELDS["person"][1:], rng.choices((1, 2, 3, 4), (22, 42, 28, 8))[0])}


def _draw_person(
    rng: random.Random, held_out: bool, person: Person, chosen: Collection[str], rare: bool
) -> ValuesAndForms:
    lists = _lists(held_out)
    company = _company(rng, held_out, rare) if "company" in chosen else ""
    role = rng.choice(lists["roles"])
    if rng.random() < 0.15:
        role = f"{rng.choice(lists['role_ranks'])} {role}"
    elif not held_out and rng.random() < 0.15:
        role = f"{rng.choice(_TRADES)} {rng.choice(_WORKERS)}"
    values = {"name": person.full, "role": role, "company": company, "city": _city(rng, held_out),
              "email": _email(rng, held_out, person, company, rare), "phone": _phone(rng, held_out)}  # fmt: skip
    unique = (
        role.startswith(("head of", "director of", "minister of", "secretary to", "chief of")) or role.isupper()
    )
    article = "the " if unique else "an " if role[0].lower() in "aeio" else "a "
    return {name: values[name] for name in FIELDS["person"] if name in chosen}, {
        "a role": article + role,
        "A role": capitalize_first(article) + role,
    }


def _meeting_fields(rng: random.Random) -> set[str]:
    chosen = set(rng.sample(FIELDS["meeting"], rng.choices((2, 3, 4, 5), (18, 34, 34, 14))[0]))
    return chosen if chosen & {"with", "topic"} else chosen | {"with"}


def _draw_meeting(
    rng: random.Random, held_out: bool, chosen: Collection[str], slots: Collection[str], rare: bool
) -> ValuesAndForms:
    spans = {
        "topic": _event_forms(rng, held_out) if "event topic" in slots else _topic_forms(rng, held_out),
        "date": date_forms(rng, held_out),
        "place": _place_forms(rng, held_out),
    }
    article, partner = _partner(rng, held_out, rare)
    if "you with" in slots:
        article, partner = "", f"you and {_person(rng, held_out, rare).first}"
    time = _time(rng, held_out, bare="at time" in slots)
    spans["with"] = {"raw": partner, "": article + partner, "with": f"with {article}{partner}", "you": partner}
    spans["time"] = {"raw": time, "": time, "at": f"at {time}"}
    values: dict[str, str | int] = {name: spans[name]["raw"] for name in FIELDS["meeting"] if name in chosen}
    forms = {slot: text for name in values for slot, text in _slots(name, spans[name]).items()}
    return values, forms


def _order_fields(rng: random.Random) -> set[str]:
    odds = {"quantity": 0.78, "price": 0.5, "customer": 0.5, "date": 0.45}
    chosen = {"item", *(name for name, share in odds.items() if rng.random() < share)}
    return chosen if len(chosen) > 1 else chosen | {rng.choice(("quantity", "price", "customer"))}


def _draw_order(
    rng: random.Random, held_out: bool, person: Person, chosen: Collection[str], rare: bool
) -> ValuesAndForms:
    one, many = _product(rng, held_out)
    count, spoken, written = _quantity(rng, held_out)
    several = count != 1 if "quantity" in chosen else rng.random() < 0.3
    item = many if several else one
    if spoken == "a" and item[0].lower() in "aeiou":
        spoken = "an"
    article, customer = _customer(rng, held_out, person, rare)
    drawn: dict[str, str | int] = {
        "item": item,
        "quantity": count,
        "price": _price(rng, held_out),
        "customer": customer,
    }
    values = {name: value for name, value in drawn.items() if name in chosen}
    # "a" and "a couple of" need the thing behind them, "3x" too.
    alone = "one" if count == 1 else written if spoken.endswith("x") else spoken.removesuffix(" of")
    forms = {"q item": f"{spoken} {item}", "raw quantity": written, "quantity": alone}
    forms |= {
        "customer": article + customer,
        "raw customer": customer,
        "the item": "the " + item,
        "The item": "The " + item,
    }
    if "date" in chosen:
        date = date_forms(rng, held_out)
        forms |= _slots("date", date)
        values["date"] = date["raw"]
    articles = ("the ", "some ", "") if item == many else ("the ", "the ", "that ")
    forms["some item"] = rng.choice(articles) + item
    return values, forms


def _slots(name: str, forms: Mapping[str, str]) -> dict[str, str]:
    """The forms of a field by slot: "raw date", "date", "on date"."""
    return {f"{form} {name}".strip(): text for form, text in forms.items()}


def _context_forms(
    rng: random.Random, held_out: bool, person: Person, values: Mapping[str, str | int]
) -> dict[str, str]:
    """Slots that are no field: pronouns, people and companies who are not the subject, old days and small numbers."""
    other, sender = _person(rng, held_out), _person(rng, held_out)
    lists = _lists(held_out)
    he, him, his = ("she", "her", "her") if person.woman else ("he", "him", "his")
    if rng.random() >= 0.85:
        pronouns = {"he": person.first, "him": person.first, "his": person.first + "'s"}
    else:
        pronouns = {"he": he, "him": him, "his": his}
    # What does not count must not look like what does: "from Friday to Friday".
    days = [day for day in _DAYS if day not in str(values.get("date", ""))]
    old_n = rng.randint(2, 40)
    old_time = _time(rng, held_out)
    while old_time in str(values.get("time", "")):
        old_time = _time(rng, held_out)
    forms = pronouns | {
        "other": other.first, "other full": f"{other.first} {other.last}", "firm": _company(rng, held_out),
        "town": rng.choice(lists["cities"]), "n": str(rng.randint(2, 30)), "day": rng.choice(days),
        "first": person.first, "self": him + "self", "sender": f"{sender.first} {sender.last}",
        "some_role": capitalize_first(rng.choice(lists["roles"])), "their_phone": _phone(rng, held_out),
        "their_mail": _email(rng, held_out, other, ""), "old_time": old_time,
        "old_place": _place_forms(rng, held_out)[""], "old_price": _price(rng, held_out),
        "old_n": str(old_n + (old_n == values.get("quantity"))), "code": str(rng.randint(1000, 99999)),
        "age": str(rng.randint(19, 79)), "year": str(rng.randint(1995, 2024)),
        "nick": _invented_name(rng, held_out)[:4], "mr": f"{'Ms' if person.woman else 'Mr'} {person.last}",
    }  # fmt: skip
    return forms | {slot.capitalize(): capitalize_first(forms[slot]) for slot in ("he", "his", "him")}
