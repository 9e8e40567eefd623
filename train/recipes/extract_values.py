"""Values of the `extract` recipe: records of people, meetings and orders. Two disjoint worlds, train and held out.

Every drawn value is a pair: the span that the answer repeats, and the forms in which a sentence may print it.
"""

from __future__ import annotations

import random

from train.recipes import extract_words as words
from train.recipes.extract_grammar import FIELDS, Record, capital
from train.recipes.extract_people import Person, company, email, person

_MONTHS = "January February March April May June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_HOURS = "one two three four five six seven eight nine ten eleven".split()
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def _digits(rng: random.Random, shape: str) -> str:
    return "".join(str(rng.randint(0, 9)) if char == "#" else str(rng.randint(2, 9)) if char == "%" else char
                   for char in shape)  # fmt: skip


def phone(rng: random.Random, held: bool) -> str:
    """A number in one of the split's formats; held-out texts use the unseen ones half of the time."""
    book = words.held() if held and rng.random() < 0.5 else words.train()
    return _digits(rng, rng.choice(book.phones))


def date(rng: random.Random, held: bool) -> dict[str, str]:
    """Forms of a date: "raw" is the span, "date" adds the article, "on date" and "by date" the preposition."""
    day, month, weekday = rng.randint(1, 28), rng.choice(_MONTHS), rng.choice(_DAYS)
    number, year = _MONTHS.index(month) + 1, rng.choice((2025, 2026, 2026, 2027))
    ordinal = f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
    article = ""
    preposition = "on "
    if held and rng.random() < 0.3:
        raw = rng.choice(
            (
                f"{day:02d}.{number:02d}.{year}",
                f"{month[:3]}{'.' * (month != 'May')} {day}",
                f"{day}-{month[:3]}-{year}",
            )
        )
    else:
        roll = rng.random()
        if roll < 0.24:
            raw = weekday
        elif roll < 0.42:
            raw = f"{rng.choice(('next', 'this', 'next', 'this coming'))} {weekday}"
            preposition = ""
        elif roll < 0.52:
            raw, preposition = (
                rng.choice(("tomorrow", "tomorrow", "today", "tonight", "the day after tomorrow")),
                "",
            )
            if raw.startswith("the "):
                raw, article = raw[4:], "the "
        elif roll < 0.6:
            raw, article = f"{ordinal} of {month}", "the "
        else:
            raw = rng.choice(
                (f"{day} {month}", f"{month} {day}", f"{month} {ordinal}", f"{ordinal} {month}", f"{month[:3]} {day}",
                 f"{year}-{number:02d}-{day:02d}", f"{day}/{number}", f"{month} {day}, {year}", f"{weekday[:3]} {day} {month[:3]}",
                 f"{day} {month} {year}", f"{weekday}, {month} {day}", f"{weekday} {day} {month}", f"{day}/{number}/{year}")
            )  # fmt: skip
    return {"raw": raw, "": article + raw, "on": preposition + article + raw, "by": "by " + article + raw}


def time(rng: random.Random, held: bool) -> str:
    """A time of day, without "at"."""
    hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 30, 30, 40, 45, 50))
    half = rng.choice(("am", "pm", "pm"))
    word = rng.choice(_HOURS)
    if held and rng.random() < 0.3:
        return rng.choice((f"{hour}.{minute:02d} {half}", f"twenty past {word}", f"{hour}:{minute:02d} {half[0]}.m.",
                           f"ten to {word}"))  # fmt: skip
    return rng.choice(
        (f"{hour}{half}", f"{hour} {half}", f"{rng.randint(7, 20)}:{minute:02d}", f"{rng.randint(7, 20):02d}:{minute:02d}",
         f"{hour}:{minute:02d} {half}", f"{hour}:{minute:02d}{half}", f"{hour} o'clock", f"half past {word}", "noon",
         f"quarter past {word}", f"quarter to {word}", f"{hour} {half.upper()}", f"{word} o'clock")
    )  # fmt: skip


def place(rng: random.Random, held: bool) -> dict[str, str]:
    """Forms of a meeting place: "raw" the span without article, "" with article, "in" with its preposition."""
    book = words.held() if held else words.train()
    roll = rng.random()
    article = ""
    if roll < 0.22:
        number = rng.choice((str(rng.randint(1, 40)), str(rng.randint(100, 499)), rng.choice("ABCDEFGH"),
                             f"{rng.choice('ABC')}{rng.randint(1, 30)}"))  # fmt: skip
        raw, preposition = f"{rng.choice(book.rooms)} {number}", "in "
    elif roll < 0.42:
        raw, preposition = rng.choice(book.cafes).format(word=rng.choice(book.place_words)), "at "
    elif roll < 0.5:
        raw, preposition = rng.choice(book.online), "on "
    elif roll < 0.62:
        raw, preposition = rng.choice(book.cities), "in "
    elif roll < 0.7:
        raw, preposition = (
            f"{rng.randint(1, 160)} {rng.choice(book.place_words)} {rng.choice(book.streets)}",
            "at ",
        )
    else:
        preposition, raw = rng.choice(book.places).split(" ", 1)
        preposition, article = preposition + " ", "the "
    return {"raw": raw, "": article + raw, "in": preposition + article + raw}


def topic(rng: random.Random, held: bool) -> dict[str, str]:
    """Forms of a meeting's topic: "raw" and "" the span without article, "the" with an article or possessive."""
    book = words.held() if held else words.train()
    raw = rng.choice(book.topics)
    if rng.random() < 0.4:
        raw = f"{rng.choice(book.topic_adjectives)} {rng.choice(book.topic_nouns)}"
    return {"raw": raw, "": raw, "the": rng.choice(("the ", "the ", "our ", "the ")) + raw}


def price(rng: random.Random, held: bool) -> str:
    """An amount with its currency, in one of the split's formats."""
    whole, cents = (
        rng.choice((rng.randint(2, 99), rng.randint(100, 950))),
        rng.choice((0, 5, 25, 49, 50, 75, 90, 95, 99)),
    )
    both = f"{whole}.{cents:02d}"
    if held and rng.random() < 0.35:
        return rng.choice(
            (
                f"CHF {both}",
                f"{whole} pounds",
                f"US${whole}",
                f"{whole},{cents:02d} €",
                f"1,{rng.randint(100, 990)} yen",
            )
        )
    return rng.choice(
        (f"${both}", f"${whole}", f"{whole} euros", f"€{whole}", f"EUR {whole}", f"£{both}", f"{both} euros", f"{whole} dollars",
         f"${both}", f"{whole} EUR", f"£{whole}", f"€{both}", f"{whole} USD", f"${rng.randint(1, 9)},{rng.randint(100, 990)}")
    )  # fmt: skip


def product(rng: random.Random, held: bool) -> tuple[str, str]:
    """Singular and plural of a product: a noun with up to two words before it."""
    book = words.held() if held else words.train()
    one = rng.choice(book.product_nouns)
    many = (
        one + "es"
        if one.endswith(("s", "x", "ch", "sh"))
        else one[:-1] + "ies"
        if one[-2:] in ("ry", "dy")
        else one + "s"
    )
    if one.endswith(("shelf", "knife", "scarf")):
        many = one.rstrip("fe") + "ves"
    front = rng.choice(book.product_adjectives) + " " if rng.random() < 0.85 else ""
    if rng.random() < 0.15:
        front = rng.choice(book.product_adjectives).strip() + " " + front if front else ""
    return front + one, front + many


def _quantity(rng: random.Random) -> tuple[int, str, str]:
    """A count, how a sentence says it, and how a list says it."""
    roll = rng.random()
    if roll < 0.16:
        return 1, rng.choice(("a", "a", "a", "one", "1")), "1"
    if roll < 0.22:
        return 12, rng.choice(("a dozen", "twelve", "12", "one dozen")), "12"
    if roll < 0.24:
        return 2, "a couple of", "2"
    if roll < 0.26:
        return 6, "half a dozen", "6"
    count = rng.choice(
        (
            rng.randint(2, 12),
            rng.randint(2, 12),
            rng.choice((15, 20, 24, 25, 30, 40, 48, 50, 60, 75, 100, 150, 200, 500)),
        )
    )
    said = _NUMBERS[count] if count < 13 and rng.random() < 0.5 else str(count)
    return count, said, str(count)


def _spread(forms: dict[str, str], name: str, spans: dict[str, str]) -> None:
    for form, text in spans.items():
        forms[f"{form} {name}".strip()] = text


def _with(rng: random.Random, held: bool) -> tuple[str, str]:
    """Article and whom one meets: a full or a first name mostly, also two names, a title with a surname, a team."""
    book = words.held() if held else words.train()
    one = person(rng, held)
    roll = rng.random()
    if roll < 0.5:
        return "", one.full
    if roll < 0.75:
        return "", one.first
    if roll < 0.83:
        return "", f"{one.first} and {person(rng, held).first}"
    if roll < 0.91:
        title = ("Mrs." if one.woman else "Mr.", "Ms." if one.woman else "Mr", "Dr.")
        return "", f"{rng.choice(title)} {one.last}"
    return "the ", rng.choice(book.teams)


Told = tuple[dict[str, str | int], dict[str, str]]  # values and forms of a record


def record(kind: str, rng: random.Random, held: bool) -> Record:
    """A record of that kind with some fields missing, and every slot that the phrases may ask for."""
    who = person(rng, held)
    make = {"person": _person_record, "meeting": _meeting_record, "order": _order_record}[kind]
    values, forms = make(rng, held, who)
    for name, value in values.items():
        forms.setdefault(name, str(value))
        forms.setdefault("raw " + name, str(value))
    _context(forms, rng, held, who)
    return Record(kind, values, forms)


def _person_record(rng: random.Random, held: bool, who: Person) -> Told:
    book = words.held() if held else words.train()
    fields = FIELDS["person"]
    extra = {"name", *rng.sample(fields[1:], rng.choices((1, 2, 3, 4), (22, 42, 28, 8))[0])}
    firm = company(rng, held) if "company" in extra else ""
    role = rng.choice(book.roles)
    if rng.random() < 0.15:
        role = f"{rng.choice(book.role_ranks)} {role}"
    drawn = {"name": who.full, "role": role, "company": firm, "city": rng.choice(book.cities),
             "email": email(rng, held, who, firm), "phone": phone(rng, held)}  # fmt: skip
    unique = role.startswith("head of") or role.isupper()
    article = "the " if unique else "an " if role[0] in "aeiou" else "a "
    return {name: drawn[name] for name in fields if name in extra}, {"a role": article + role}


def _meeting_record(rng: random.Random, held: bool, _: Person) -> Told:
    fields = FIELDS["meeting"]
    count = rng.choices((2, 3, 4, 5), (18, 34, 34, 14))[0]
    chosen = set(rng.sample(fields, count))
    chosen |= {"with"} if not chosen & {"with", "topic"} else set()
    spans = {"topic": topic(rng, held), "date": date(rng, held), "place": place(rng, held)}
    article, partner = _with(rng, held)
    when = time(rng, held)
    spans["with"] = {"raw": partner, "": article + partner, "with": f"with {article}{partner}"}
    spans["time"] = {"raw": when, "": when, "at": f"at {when}"}
    values: dict[str, str | int] = {}
    forms: dict[str, str] = {}
    for name in fields:
        if name in chosen:
            _spread(forms, name, spans[name])
            values[name] = spans[name]["raw"]
    return values, forms


def _order_record(rng: random.Random, held: bool, who: Person) -> Told:
    one, many = product(rng, held)
    count, said, written = _quantity(rng)
    odds = {"quantity": 0.78, "price": 0.5, "customer": 0.5, "date": 0.45}
    chosen = {"item", *(name for name, share in odds.items() if rng.random() < share)}
    if len(chosen) == 1:
        chosen.add(rng.choice(("quantity", "price", "customer")))
    several = count != 1 if "quantity" in chosen else rng.random() < 0.3
    item = many if several else one
    if said == "a" and item[0] in "aeiou":
        said = "an"
    customer = company(rng, held) if rng.random() < 0.25 else who.first if rng.random() < 0.12 else who.full
    drawn: dict[str, str | int] = {
        "item": item,
        "quantity": count,
        "price": price(rng, held),
        "customer": customer,
    }
    values = {name: value for name, value in drawn.items() if name in chosen}
    forms = {"q item": f"{said} {item}", "raw quantity": written, "quantity": said}
    if "date" in chosen:
        when = date(rng, held)
        _spread(forms, "date", when)
        values["date"] = when["raw"]
    forms["some item"] = rng.choice(("the ", "some ", "") if item == many else ("the ", "the ", "that ")) + item
    return values, forms


def _context(forms: dict[str, str], rng: random.Random, held: bool, who: Person) -> None:
    """Slots that are no field: pronouns, people and firms who are not the subject, small numbers."""
    book = words.held() if held else words.train()
    other = person(rng, held)
    he, him, his = ("she", "her", "her") if who.woman else ("he", "him", "his")
    subject = he if rng.random() < 0.85 else who.first
    forms |= {"he": subject, "him": him if subject == he else subject, "his": his if subject == he else subject + "'s",
              "other": other.first, "other full": f"{other.first} {other.last}", "firm": company(rng, held),
              "town": rng.choice(book.cities), "n": str(rng.randint(2, 30)), "day": rng.choice(_DAYS),
              "first": who.first, "self": him + "self"}  # fmt: skip
    forms |= {slot.capitalize(): capital(forms[slot]) for slot in ("he", "his")}
