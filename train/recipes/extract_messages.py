"""Messages of the `extract` recipe and the objects that they should become: phrases filled with records.

Three sources: whole messages (`messages` and `drills` of a phrase book), sentences in a row (`heads`, `followups`,
`distractors`), and notes, lists and mail signatures. Noise touches only words that are no value.
"""

from __future__ import annotations

import json
import random
import re

from adapter.base.template import Message
from train.input.examples import Example
from train.input.history import sample_history
from train.recipes.extract_grammar import (
    FIELDS,
    Facts,
    SplitPhrases,
    add_noise,
    capitalize_first,
    draw_message,
    fill_sentences,
    fill_slots,
    labelled_list,
    nonsense,
    note,
    prose,
    resolve_choices,
    slipped,
    slot_fields,
    slots_of,
    split_phrases,
    stylize,
)
from train.recipes.extract_values import draw_record

Fields = dict[str, str | int]

_WHOLE_MESSAGES, _DRILLS = 0.58, 0.08  # shares of training texts
_SLIPS = 0.03  # share of whole messages with a slip in a value


def answer_text(expected: Fields) -> str:
    """The answer as the adapter is to write it."""
    return json.dumps(expected, ensure_ascii=False)


def draw_example(rng: random.Random, split: str) -> Example:
    """One example of a split: a text, mostly bare, at times under an instruction or late in a conversation."""
    phrases = split_phrases(split)
    earlier: list[Message] = []
    if rng.random() < phrases.earlier_share:
        for _ in range(rng.choice((1, 1, 2))):
            roll = rng.random()
            if roll < 0.35:
                question, expected = text_and_fields(rng, split)
                earlier += [Message("user", question), Message("assistant", answer_text(expected))]
            elif roll < 0.6 or split != "train":
                question, answer = rng.choice(phrases.chat)
                earlier += [Message("user", question), Message("assistant", answer)]
            else:  # the manners of other adapters
                earlier += sample_history(rng)
    text, expected = text_and_fields(rng, split)
    if rng.random() < phrases.instruction_share:
        text = resolve_choices(rng.choice(phrases.instructions), rng).replace("{text}", text)
    return Example((*earlier, Message("user", text)), answer_text(expected))


def text_and_fields(rng: random.Random, split: str) -> tuple[str, Fields]:
    """A text of any kind and the object that it should become."""
    kind = rng.choice(tuple(FIELDS))
    book = split_phrases(split).books[kind]
    if book.messages:
        roll = rng.random() if book.heads else 0.0
        if roll < _WHOLE_MESSAGES:
            return _whole_message(kind, rng, split)
        if roll < _WHOLE_MESSAGES + _DRILLS:
            return _drill(kind, rng, split)
    record = draw_record(kind, rng, split != "train")
    if rng.random() < 0.1:  # all in lower case
        record.lower()
        text = _text(record, rng, split).lower()
    else:
        text = _text(record, rng, split)
    return text, _expected(record, text)


def _expected(record: Facts, text: str) -> Fields:
    """The object of a record as its text spells it: a value that begins a sentence may have got a capital."""
    expected: Fields = {"type": record.kind}
    for name in FIELDS[record.kind]:
        if name in record.values:
            value = record.values[name]
            if isinstance(value, str) and value not in text:
                value = capitalize_first(value)
            expected[name] = value
    return expected


def _whole_message(kind: str, rng: random.Random, split: str) -> tuple[str, Fields]:
    book = split_phrases(split).books[kind]
    frame = draw_message(book.messages, book.distractors, rng)
    return _filled(kind, stylize(frame, rng) if rng.random() < 0.5 else frame, rng, split)


def _drill(kind: str, rng: random.Random, split: str) -> tuple[str, Fields]:
    """A short message with rare values: what it teaches is to copy them letter by letter."""
    book = split_phrases(split).books[kind]
    return _filled(kind, draw_message(book.drills, book.distractors, rng), rng, split, rare=True)


def _filled(kind: str, frame: str, rng: random.Random, split: str, rare: bool = False) -> tuple[str, Fields]:
    """Prints a frame with a record that has just the fields which the frame states."""
    record = draw_record(kind, rng, split != "train", slots_of(frame), rare)
    lower = rng.random() < (0.1 if frame[:1].isupper() else 0.22)
    if lower:
        record.lower()
    if split == "train" and rng.random() < _SLIPS:
        slip_in_value(record, rng)
    text = fill_sentences(frame, record.forms)
    if lower:
        text = text.lower()
    return text, _expected(record, text)


def slip_in_value(record: Facts, rng: random.Random) -> None:
    """A typing slip in a value: the answer repeats it as it stands."""
    for name in ("role", "topic", "item", "company"):
        long_words = re.findall(r"[a-z]{5,}", str(record.values.get(name, "")))
        if long_words:
            word = rng.choice(long_words)
            slip = slipped(word, rng)
            record.values[name] = str(record.values[name]).replace(word, slip)
            for slot in record.forms:
                if slot_fields(slot) & {name}:
                    record.forms[slot] = record.forms[slot].replace(word, slip)
            return


def _text(record: Facts, rng: random.Random, split: str) -> str:
    phrases = split_phrases(split)
    book = phrases.books[record.kind]
    roll = rng.random()
    if roll < phrases.note_share:
        text = fill_slots(note(book, record, rng, rng.choice(phrases.separators)), record.forms)
        return text.replace("..", ".")  # after "p.m." and "Inc."
    if roll < phrases.note_share + 0.05:
        return fill_slots(
            labelled_list(book, record, rng, rng.choice(phrases.block_titles[record.kind])), record.forms
        )
    if roll < phrases.note_share + 0.11 and record.kind == "person":
        return _mail_signature(record, rng, phrases)
    return _message(record, rng, phrases, noisy=split == "train")


def _mail_signature(record: Facts, rng: random.Random, phrases: SplitPhrases) -> str:
    """The end of a mail whose sender is the person."""
    lines = ["{raw name}"]
    rest = [name for name in FIELDS["person"][1:] if name in record.values]
    if {"role", "company"} <= set(rest) and rng.random() < 0.5:
        lines.append("{role}, {company}")
        rest = [name for name in rest if name not in ("role", "company")]
    lines += ["{raw " + name + "}" for name in rest]
    body = rng.choice(phrases.signature_bodies)
    opening = capitalize_first(rng.choice(("hi {other},", "dear {other},", "hello {other},"))) + "\n\n"
    opening = fill_slots(opening, record.forms) if rng.random() < 0.5 else ""
    signoff = rng.choice(phrases.signoffs)
    contact = fill_slots(rng.choice(("\n", "\n", " | ")).join(lines), record.forms)
    return f"{opening}{capitalize_first(body)}\n{signoff}\n{contact}"


def _message(record: Facts, rng: random.Random, phrases: SplitPhrases, noisy: bool) -> str:
    """Sentences in a row: at times an opening before them, a distractor among them, a closing after them.

    noisy: some have strange words, or nonsense among them.
    """
    kind = "self" if record.kind == "person" and rng.random() < 0.12 else record.kind
    book = phrases.books[kind]
    sentences = prose(book, record, rng)
    states_fields = [True] * len(sentences)
    if rng.random() < 0.32:
        place = rng.choice((0, len(sentences), len(sentences), rng.randint(0, len(sentences))))
        # A pronoun needs somebody before it: the first sentence introduces the person.
        place = max(place, 1) if record.kind == "person" else place
        sentences.insert(place, resolve_choices(rng.choice(book.distractors), rng))
        states_fields.insert(place, False)
    if noisy and rng.random() < 0.35:
        sentences = [add_noise(sentence, rng) for sentence in sentences]
        if rng.random() < 0.4:
            place = rng.randint(1, len(sentences))
            sentences.insert(place, nonsense(rng))
            states_fields.insert(place, False)
    opening = resolve_choices(rng.choice(phrases.openings), rng) if rng.random() < 0.25 else ""
    text = ""
    if opening:
        line_break = opening[-1] == "," and rng.random() < 0.3
        text = fill_slots(capitalize_first(opening), record.forms) + ("\n" if line_break else " ")
    starts_sentence = not opening or opening[-1] not in ",:" or text[-1] == "\n" or rng.random() < 0.3
    for number, sentence in enumerate(sentences):
        filled = fill_slots(sentence, record.forms).replace("..", ".")  # after "p.m." and "Inc."
        if starts_sentence and not sentence.startswith("{email}"):
            filled = capitalize_first(filled)
        last = number + 1 == len(sentences)
        cut = filled.endswith(".") and not filled.endswith(tuple(record.forms.values()))
        starts_sentence = True
        if not last and all(states_fields[number : number + 2]) and cut and rng.random() < 0.25:
            filled, starts_sentence = filled[:-1] + rng.choice((", and", ";", ",", " -")), False
        text += filled + ("" if last else " ")
    if rng.random() < 0.12:
        gap = rng.choice((" ", "\n", "\n\n"))
        closing = resolve_choices(rng.choice(phrases.closings), rng)
        return text + gap + fill_slots(capitalize_first(closing), record.forms)
    if text.endswith(".") and not text.endswith(tuple(record.forms.values())) and rng.random() < 0.2:
        return text[:-1] + rng.choice(("", "", "!"))
    return text
