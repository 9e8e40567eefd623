"""ScienceQA (arXiv 2209.09513): its problems, their prompt, and the columns of the paper's table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from train.formats.record import DataError, fault, list_of, object_of, required, text_of
from train.formats.sources import Item, read_json

T = TypeVar("T")
LETTERS = "ABCDEFGHIJ"
COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


@dataclass(frozen=True)
class Problem:
    """One multiple-choice question. answer: index of the right choice; image: a path that may not exist."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    image: Path | None
    grade: int  # 1 to 12
    subject: str  # natural science, social science, language science
    split: str  # train, val, test

    @property
    def has_text(self) -> bool:
        return bool(self.hint)

    @property
    def has_image(self) -> bool:
        return self.image is not None

    @property
    def letter(self) -> str:
        return LETTERS[self.answer]


def is_scienceqa(folder: Path) -> bool:
    return (folder / "problems.json").is_file()


def picture_folder(folder: Path) -> Path:
    """The folder that holds train/, val/ and test/: <folder>/images if that exists, else <folder>."""
    return folder / "images" if (folder / "images").is_dir() else folder


def problems(folder: Path, split: str, images: Path | None = None) -> Sequence[Problem]:
    """The problems of a split of pid_splits.json: train, val, trainval, test, minival, minitest.

    images: the folder that holds train/, val/ and test/, by default picture_folder(folder).
    Raises DataError if the files, the split or a problem of it are broken.
    """
    # Both files are one object each, 30 MB and 0.3 MB: loaded whole.
    all_problems = read_json(folder / "problems.json")
    splits = read_json(folder / "pid_splits.json")
    if split not in splits:
        raise DataError(f"pid_splits.json has no split '{split}'. It has: {', '.join(splits)}.")
    images = images or picture_folder(folder)
    selected = []
    for number in list_of(splits[split], split, "pid_splits.json"):
        if str(number) not in all_problems:
            raise DataError(
                f"pid_splits.json, split '{split}': problem '{number}' is not in problems.json. "
                "Fetch both files from the same place."
            )
        selected.append(_problem(str(number), all_problems[str(number)], images))
    return tuple(selected)


def question_text(problem: Problem) -> str:
    """The user turn: question, context, options, in the order of the paper's prompt (section 4.2)."""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False))
    return f"Question: {problem.question}\nContext: {problem.hint or 'N/A'}\nOptions: {options}"


def columns(problem: Problem) -> tuple[str, ...]:
    """The columns of the paper's table in which the problem counts.

    By the official evaluation: TXT has a hint, IMG an image, NO neither; a problem with both counts in both.
    """
    context = ["TXT"] * problem.has_text + ["IMG"] * problem.has_image
    grades = "G1-6" if problem.grade <= 6 else "G7-12"
    return (_SUBJECTS[problem.subject], *(context or ["NO"]), grades, "Avg")


def by_column(problems: Sequence[Problem], values: Sequence[T]) -> dict[str, list[T]]:
    """The values of the problems of each of COLUMNS that has problems. values: one for each problem."""
    found: dict[str, list[T]] = {name: [] for name in COLUMNS}
    for problem, value in zip(problems, values, strict=True):
        for name in columns(problem):
            found[name].append(value)
    return {name: part for name, part in found.items() if part}


def table_row(problems: Sequence[Problem], right: Sequence[float]) -> dict[str, float]:
    """Percent right in each of COLUMNS that has problems. right: 0 to 1 for each problem."""
    return {name: 100 * sum(part) / len(part) for name, part in by_column(problems, right).items()}


def chance(problems: Sequence[Problem]) -> dict[str, float]:
    """The table_row of random guesses."""
    return table_row(problems, [1 / len(p.choices) for p in problems])


def of_problems(problems: Sequence[Problem], images: Path) -> Iterator[Item]:
    """The problems as records of pairs. The answer is the letter alone: the score compares their likelihoods."""
    for problem in problems:
        value = {"question": question_text(problem), "answer": problem.letter}
        image = {} if problem.image is None else {"image": problem.image.relative_to(images).as_posix()}
        yield _where(problem.id), value | image


def _where(number: str) -> str:
    return f"problems.json, problem {number}"


def _problem(number: str, value: Any, images: Path) -> Problem:
    where = _where(number)
    value = object_of(value, number, where)

    def text(key: str, blank: bool = False) -> str:
        return text_of(required(value, key, where), key, where, blank)

    choices = list_of(required(value, "choices", where), "choices", where)
    if len(choices) > len(LETTERS):
        raise fault(where, "choices", f"has {len(choices)} of them", f"{len(LETTERS)} is the limit.")
    answer = required(value, "answer", where)
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise fault(where, "answer", f"is {answer!r}", f"It is the index of a choice, 0 to {len(choices) - 1}.")
    grade = re.fullmatch(r"grade([1-9]|1[0-2])", text("grade"))
    if not grade:
        raise fault(where, "grade", f"is {value['grade']!r}", "It is grade1 to grade12.")
    if text("subject") not in _SUBJECTS:
        raise fault(where, "subject", f"is {value['subject']!r}", f"Known subjects: {', '.join(_SUBJECTS)}.")
    return Problem(
        id=number,
        question=text("question"),
        choices=tuple(text_of(choice, f"choices[{i}]", where, blank=True) for i, choice in enumerate(choices)),
        answer=answer,
        hint=text("hint", blank=True) if value.get("hint") else "",
        image=images / text("split") / number / text("image") if value.get("image") else None,
        grade=int(grade[1]),
        subject=value["subject"],
        split=text("split"),
    )
