"""Values of the `extract` recipe: people, companies, dates, prices, and records made of them.

Word lists are in `data/extract_words.yaml`, names of people come from Faker. A training world and a held-out world
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
_NUMBERS = ["zero", *_HOURS, "twelve"]

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
        found = found.difference(banned)
        return tuple(sorted(name for name in found if name.replace("-", "").isalpha() and 2 < len(name) < 13))

    given = training.women + training.men
    return Names(pool("women", given), pool("men", given), pool("surnames", training.surnames))


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
    syllables = [
        rng.choice(both["name_onsets"]) + rng.choice(both["name_middles"]) for _ in range(rng.choice((1, 1, 2)))
    ]
    return ("".join(syllables) + rng.choice(ends)).capitalize()


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
        particles = ("van der", "del", "ten") if held_out else ("van", "de", "von", "da")
        full = f"{first} {rng.choice(particles)} {last}"
    return Person(full, first, last, woman)


def _company(rng: random.Random, held_out: bool, rare: bool = False) -> str:
    """A company: one or two words, and often a line of business or a legal form."""
    lists = _lists(held_out)
    invented = rng.random() < (0.8 if rare else 0.3)
    core = _invented_name(rng, held_out) if invented else rng.choice(lists["company_words"])
    roll = rng.random()
    if roll < 0.3:
        return core
    if roll < 0.75:
        return f"{core} {rng.choice(lists['businesses'])}"
    if roll < 0.87:
        return f"{core} {rng.choice(lists['legal_forms'])}"
    return f"{rng.choice(names(held_out).surnames)} {rng.choice(lists['and_sons'])}"


def _plain(text: str) -> str:
    """The letters and digits of a text without accents, in lower case: what an address may hold."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ø", "o").replace("ł", "l").replace("ß", "ss"))
    return "".join(char for char in decomposed.lower() if char.isascii() and char.isalnum())


def _email(rng: random.Random, held_out: bool, person: Person, company: str) -> str:
    """An address made of the name or of a function, at the company ("" for none), a provider or another company."""
    lists = _lists(held_out)
    first, last = _plain(person.first), _plain(person.last)
    local = rng.choice(
        (f"{first}.{last}", f"{first[0]}.{last}", f"{first}{last}", first, last, f"{first[0]}{last}", f"{first}_{last}",
         f"{first}{rng.randint(1, 99)}", rng.choice(lists["mailboxes"]))
    )  # fmt: skip
    if company and rng.random() < 0.5:
        domain = _plain(company) if rng.random() < 0.6 else _plain(company.split()[0])
        return f"{local}@{domain}.{rng.choice(lists['endings'])}"
    if rng.random() < 0.5:
        return f"{local}@{rng.choice(lists['providers'])}"
    return f"{local}@{_plain(rng.choice(lists['company_words']))}.{rng.choice(lists['endings'])}"


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
    if roll < 0.42:
        return f"{rng.choice(('next', 'this', 'next', 'this coming'))} {weekday}", "", ""
    if roll < 0.52:
        near = rng.choice(("tomorrow", "tomorrow", "today", "tonight", "the day after tomorrow"))
        return (near[4:], "the ", "") if near.startswith("the ") else (near, "", "")
    if roll < 0.6:
        return f"{ordinal} of {month}", "the ", "on "
    raw = rng.choice(
        (f"{day} {month}", f"{month} {day}", f"{month} {ordinal}", f"{ordinal} {month}", f"{month[:3]} {day}",
         f"{year}-{number:02d}-{day:02d}", f"{day}/{number}", f"{month} {day}, {year}", f"{weekday[:3]} {day} {month[:3]}",
         f"{day} {month} {year}", f"{weekday}, {month} {day}", f"{weekday} {day} {month}", f"{day}/{number}/{year}")
    )  # fmt: skip
    return raw, "", "on "


def _time(rng: random.Random, held_out: bool) -> str:
    """A time of day, without "at"."""
    hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 30, 30, 40, 45, 50))
    half = rng.choice(("am", "pm", "pm"))
    word = rng.choice(_HOURS)
    if held_out and rng.random() < 0.3:
        return rng.choice((f"{hour}.{minute:02d} {half}", f"twenty past {word}", f"{hour}:{minute:02d} {half[0]}.m.",
                           f"ten to {word}"))  # fmt: skip
    return rng.choice(
        (f"{hour}{half}", f"{hour} {half}", f"{rng.randint(7, 20)}:{minute:02d}", f"{rng.randint(7, 20):02d}:{minute:02d}",
         f"{hour}:{minute:02d} {half}", f"{hour}:{minute:02d}{half}", f"{hour} o'clock", f"half past {word}", "noon",
         f"quarter past {word}", f"quarter to {word}", f"{hour} {half.upper()}", f"{word} o'clock")
    )  # fmt: skip


def _place_forms(rng: random.Random, held_out: bool) -> dict[str, str]:
    """Forms of a place: "raw" is the span without its article, "" adds the article, "in" the preposition too."""
    lists = _lists(held_out)
    roll = rng.random()
    article = ""
    if roll < 0.22:
        number = rng.choice((str(rng.randint(1, 40)), str(rng.randint(100, 499)), rng.choice("ABCDEFGH"),
                             f"{rng.choice('ABC')}{rng.randint(1, 30)}"))  # fmt: skip
        raw, preposition = f"{rng.choice(lists['rooms'])} {number}", "in "
    elif roll < 0.42:
        raw, preposition = rng.choice(lists["cafes"]).format(word=rng.choice(lists["place_words"])), "at "
    elif roll < 0.5:
        raw, preposition = rng.choice(lists["online"]), "on "
    elif roll < 0.62:
        raw, preposition = rng.choice(lists["cities"]), "in "
    elif roll < 0.7:
        number = str(rng.randint(1, 160))
        raw, preposition = f"{number} {rng.choice(lists['place_words'])} {rng.choice(lists['streets'])}", "at "
    else:
        preposition, raw = rng.choice(lists["places"]).split(" ", 1)
        preposition, article = preposition + " ", "the "
    return {"raw": raw, "": article + raw, "in": preposition + article + raw}


def _topic_forms(rng: random.Random, held_out: bool) -> dict[str, str]:
    """Forms of a topic: "raw" and "" are the span without an article, "the" adds an article or a possessive."""
    lists = _lists(held_out)
    raw = rng.choice(lists["topics"])
    if rng.random() < 0.4:
        raw = f"{rng.choice(lists['topic_adjectives'])} {rng.choice(lists['topic_nouns'])}"
    return {"raw": raw, "": raw, "the": rng.choice(("the ", "the ", "our ", "the ")) + raw}


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
    return rng.choice(
        (f"${both}", f"${whole}", f"{whole} euros", f"€{whole}", f"EUR {whole}", f"£{both}", f"{both} euros", f"{whole} dollars",
         f"${both}", f"{whole} EUR", f"£{whole}", f"€{both}", f"{whole} USD", f"${rng.randint(1, 9)},{rng.randint(100, 990)}")
    )  # fmt: skip


def _product(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """Singular and plural of a product: a noun with up to two words before it."""
    lists = _lists(held_out)
    one = rng.choice(lists["product_nouns"])
    if one.endswith(("shelf", "knife", "scarf")):
        many = one.rstrip("fe") + "ves"
    elif one.endswith(("s", "x", "ch", "sh")):
        many = one + "es"
    elif one.endswith(("ry", "dy")):
        many = one[:-1] + "ies"
    else:
        many = one + "s"
    front = rng.choice(lists["product_adjectives"]) + " " if rng.random() < 0.85 else ""
    if rng.random() < 0.15:
        front = rng.choice(lists["product_adjectives"]) + " " + front if front else ""
    return front + one, front + many


def _quantity(rng: random.Random) -> tuple[int, str, str]:
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
    many = (15, 20, 24, 25, 30, 40, 48, 50, 60, 75, 100, 150, 200, 500)
    count = rng.choice((rng.randint(2, 12), rng.randint(2, 12), rng.choice(many)))
    spoken = _NUMBERS[count] if count < 13 and rng.random() < 0.5 else str(count)
    return count, spoken, str(count)


def _partner(rng: random.Random, held_out: bool, rare: bool) -> tuple[str, str]:
    """Article and name of whom one meets: one person mostly, also two, a title with a surname, a team."""
    one = _person(rng, held_out, rare)
    roll = rng.random()
    if roll < 0.5:
        return "", one.full
    if roll < 0.75:
        return "", one.first
    if roll < 0.83:
        return "", f"{one.first} and {_person(rng, held_out).first}"
    if roll < 0.91:
        titles = ("Mrs.", "Ms.", "Dr.") if one.woman else ("Mr.", "Mr", "Dr.")
        return "", f"{rng.choice(titles)} {one.last}"
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
    values = {"name": person.full, "role": role, "company": company, "city": rng.choice(lists["cities"]),
              "email": _email(rng, held_out, person, company), "phone": _phone(rng, held_out)}  # fmt: skip
    unique = role.startswith("head of") or role.isupper()
    article = "the " if unique else "an " if role[0] in "aeiou" else "a "
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
    time = _time(rng, held_out)
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
    count, spoken, written = _quantity(rng)
    several = count != 1 if "quantity" in chosen else rng.random() < 0.3
    item = many if several else one
    if spoken == "a" and item[0] in "aeiou":
        spoken = "an"
    article, customer = _customer(rng, held_out, person, rare)
    drawn: dict[str, str | int] = {
        "item": item,
        "quantity": count,
        "price": _price(rng, held_out),
        "customer": customer,
    }
    values = {name: value for name, value in drawn.items() if name in chosen}
    forms = {"q item": f"{spoken} {item}", "raw quantity": written, "quantity": spoken}
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
    forms = pronouns | {
        "other": other.first, "other full": f"{other.first} {other.last}", "firm": _company(rng, held_out),
        "town": rng.choice(lists["cities"]), "n": str(rng.randint(2, 30)), "day": rng.choice(days),
        "first": person.first, "self": him + "self", "sender": f"{sender.first} {sender.last}",
        "some_role": capitalize_first(rng.choice(lists["roles"])), "their_phone": _phone(rng, held_out),
        "their_mail": _email(rng, held_out, other, ""), "old_time": _time(rng, held_out),
        "old_place": _place_forms(rng, held_out)[""], "old_price": _price(rng, held_out),
        "old_n": str(old_n + (old_n == values.get("quantity"))), "code": str(rng.randint(1000, 99999)),
        "age": str(rng.randint(19, 79)), "year": str(rng.randint(1995, 2024)),
        "nick": _invented_name(rng, held_out)[:4], "mr": f"{'Ms' if person.woman else 'Mr'} {person.last}",
    }  # fmt: skip
    return forms | {slot.capitalize(): capitalize_first(forms[slot]) for slot in ("he", "his", "him")}
