"""People and firms of the `extract` recipe, and their addresses. Names of training and held-out texts are disjoint."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import dataclass
from functools import cache
from zlib import crc32

from train.recipes import extract_words as words

# English names are common to visitors' texts, so both splits have some: each name goes to one split by its checksum.
_ENGLISH = ["en_US", "en_GB"]
_TRAIN_LOCALES = (
    "en_IE de_DE fr_FR es_ES it_IT pt_BR nl_NL sv_SE pl_PL fi_FI tr_TR hr_HR cs_CZ ro_RO id_ID en_IN vi_VN yo_NG sk_SK"
).split()
_HELD_LOCALES = "en_AU en_NZ da_DK no_NO hu_HU es_MX lt_LT sl_SI zu_ZA et_EE".split()
_ONSETS = "b br ch d dr f g gr h j k kl l m n p r s sh st t tr v w z".split()
_MIDDLES = "a e i o u ai ea ou ie ar en il or an er in".split()
_ENDS = "n r l s th ck m d nd x ng rt vo ra lo ski son man ez ini".split()


@dataclass(frozen=True)
class People:
    """Given names by sex and surnames of one split."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    surnames: tuple[str, ...]


@cache
def _drawn(locale: str, seed: int, count: int) -> People:
    """That many names of one of Faker's locales, repeated ones included."""
    from faker import Faker

    fake = Faker(locale)
    fake.seed_instance(seed)
    rows = [(fake.first_name_female(), fake.first_name_male(), fake.last_name()) for _ in range(count)]
    women, men, surnames = zip(*rows, strict=True)
    return People(women, men, surnames)


@cache
def people(held: bool) -> People:
    """Names from Faker's locales of that split, drawn once; no held-out name is also a training name."""
    english = [_drawn(locale, 1000 + number, 1500) for number, locale in enumerate(_ENGLISH)]
    locales = _HELD_LOCALES if held else _TRAIN_LOCALES
    foreign = [_drawn(locale, 1000 + number, 60) for number, locale in enumerate(locales, start=len(_ENGLISH))]
    seen = people(False) if held else None

    def pool(part: str, *banned: tuple[str, ...]) -> tuple[str, ...]:
        names = {name for drawn in english for name in getattr(drawn, part) if _held(name) == held}
        names |= {name for drawn in foreign for name in getattr(drawn, part)}
        names = names.difference(*banned)
        return tuple(sorted(name for name in names if name.replace("-", "").isalpha() and 2 < len(name) < 13))

    given = (seen.women, seen.men) if seen else ()
    return People(
        pool("women", *given), pool("men", *given), pool("surnames", *((seen.surnames,) if seen else ()))
    )


def _held(name: str) -> bool:
    """Whether an English name is one of the held-out quarter."""
    return crc32(name.encode()) % 4 == 0


def invented(rng: random.Random, held: bool) -> str:
    """A pronounceable word that is nobody's name; the two splits use different letters to end it."""
    ends = _ENDS[1::2] if held else _ENDS[::2]
    parts = [rng.choice(_ONSETS) + rng.choice(_MIDDLES) for _ in range(rng.choice((1, 1, 2)))]
    return ("".join(parts) + rng.choice(ends)).capitalize()


@dataclass(frozen=True)
class Person:
    """A name as written, its plain first and last part, and the pronouns that go with it."""

    full: str
    first: str
    last: str
    woman: bool


def person(rng: random.Random, held: bool) -> Person:
    """A person of one of several shapes: two parts mostly, also initials, double names, titles, invented names."""
    pool = people(held)
    woman = rng.random() < 0.5
    first = rng.choice(pool.women if woman else pool.men)
    last = invented(rng, held) if rng.random() < 0.15 else rng.choice(pool.surnames)
    if rng.random() < 0.06:
        first = invented(rng, held)
    roll = rng.random()
    full = f"{first} {last}"
    if roll < 0.04:
        full = f"{first[0]}. {last}"
    elif roll < 0.08:
        full = f"{first} {rng.choice('ABCDEGHJKLMRST')}. {last}"
    elif roll < 0.11:
        full = f"{first} {last}-{rng.choice(pool.surnames)}"
    elif roll < 0.16:
        full = f"{rng.choice(('Dr.', 'Dr', 'Prof.', 'Dr.') if held else ('Dr.', 'Dr', 'Prof.'))} {full}"
    elif roll < 0.19:
        full = (
            f"{first} {rng.choice(('van', 'de', 'von', 'da') if not held else ('van der', 'del', 'ten'))} {last}"
        )
    return Person(full, first, last, woman)


def company(rng: random.Random, held: bool) -> str:
    """A company: one or two words and often a line of business or a legal form."""
    book = words.held() if held else words.train()
    core = invented(rng, held) if rng.random() < 0.3 else rng.choice(book.company_words)
    roll = rng.random()
    if roll < 0.3:
        return core
    if roll < 0.75:
        return f"{core} {rng.choice(book.businesses)}"
    if roll < 0.87:
        return f"{core} {rng.choice(book.legal_forms)}"
    return f"{rng.choice(people(held).surnames)} {rng.choice(book.and_sons)}"


def _plain(text: str) -> str:
    """Letters and digits of a text without accents, in lower case: what an address may hold."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ø", "o").replace("ł", "l").replace("ß", "ss"))
    return "".join(char for char in decomposed.lower() if char.isascii() and char.isalnum())


def email(rng: random.Random, held: bool, who: Person, firm: str | None) -> str:
    """An address made of the name, of a function or of nothing in particular, at the firm or at a provider."""
    book = words.held() if held else words.train()
    first, last = _plain(who.first), _plain(who.last)
    local = rng.choice(
        (f"{first}.{last}", f"{first[0]}.{last}", f"{first}{last}", first, last, f"{first[0]}{last}", f"{first}_{last}",
         f"{first}{rng.randint(1, 99)}", rng.choice(book.mailboxes))
    )  # fmt: skip
    if firm and rng.random() < 0.5:
        domain = _plain(firm) if rng.random() < 0.6 else _plain(firm.split()[0])
        return f"{local}@{domain}.{rng.choice(book.endings)}"
    if rng.random() < 0.5:
        return f"{local}@{rng.choice(book.providers)}"
    return f"{local}@{_plain(rng.choice(book.company_words))}.{rng.choice(book.endings)}"
