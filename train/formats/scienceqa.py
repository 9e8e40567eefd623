"""ScienceQA (arXiv 2209.09513): its problems, their prompt, and the columns of the paper's table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from train.formats.record import DataError, Filled, Shape, Text, check
from train.formats.sources import Item, read_json

T = TypeVar("T")
LETTERS = "ABCDEFGHIJ"
COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


class _Files(Shape):
    problems: dict[str, dict[str, Any]]
    splits: dict[str, list[int | str]]


class Problem(Shape):
    """One multiple-choice question. answer: index of the right choice."""

    id: str
    question: Filled
    choices: Annotated[list[Text], Field(min_length=1, max_length=len(LETTERS))]
    answer: int
    hint: Text | None
    image_name: Annotated[Text | None, Field(alias="image")]
    grade: Annotated[str, Field(pattern=r"^grade([1-9]|1[0-2])$")]
    subject: Literal["natural science", "social science", "language science"]
    split: Filled  # train, val, test
    images: Path  # the folder of all pictures

    @model_validator(mode="after")
    def _check(self) -> Problem:
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer} is no index of the {len(self.choices)} choices.")
        parts = f"{self.split}/{self.id}/{self.image_name}".replace("\\", "/").split("/")
        if self.image_name and {"", ".."} & {*parts}:  # of a zip on the page: other visitors' pictures
            raise ValueError("its picture is named outside of its folder.")
        return self

    @property
    def image(self) -> Path | None:
        """A path that may not exist."""
        return self.images / self.split / self.id / self.image_name if self.image_name else None

    @property
    def letter(self) -> str:
        return LETTERS[self.answer]


def picture_folder(folder: Path) -> Path:
    """The folder that holds train/, val/ and test/: <folder>/images if that exists, else <folder>."""
    return folder / "images" if (folder / "images").is_dir() else folder


def problems(folder: Path, split: str, images: Path | None = None) -> Sequence[Problem]:
    """The problems of a split. images: the folder that holds train/, val/ and test/. Raises DataError."""
    # Both files are one object each, 30 MB and 0.3 MB: loaded whole.
    parts = {"problems": "problems.json", "splits": "pid_splits.json"}
    files = check(_Files, {part: read_json(folder / name) for part, name in parts.items()}, folder.name)
    if not files.splits.get(split):
        there = ", ".join(name for name, numbers in files.splits.items() if numbers)
        raise DataError(f"pid_splits.json has no problems of the split '{split}'. It has those of: {there}.")
    pictures, found = images or picture_folder(folder), []
    for number in map(str, files.splits[split]):
        if number not in files.problems:
            raise DataError(
                f"pid_splits.json, split '{split}': problem '{number}' is not in problems.json. "
                "Fetch both files from the same place."
            )
        value = {"hint": "", "image": None, **files.problems[number], "id": number, "images": pictures}
        found.append(check(Problem, value, f"problems.json, problem {number}"))
    return found


def question_text(problem: Problem) -> str:
    """The user turn: question, context, options, in the order of the paper's prompt (section 4.2)."""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False))
    return f"Question: {problem.question}\nContext: {problem.hint or 'N/A'}\nOptions: {options}"


def columns(problem: Problem) -> tuple[str, ...]:
    """The columns of the paper's table in which the problem counts.

    By the official evaluation: TXT has a hint, IMG an image, NO neither; a problem with both counts in both.
    """
    context = [name for name, given in (("TXT", problem.hint), ("IMG", problem.image)) if given]
    grades = "G1-6" if int(problem.grade.removeprefix("grade")) <= 6 else "G7-12"
    return (_SUBJECTS[problem.subject], *(context or ["NO"]), grades, "Avg")


def by_column(problems: Sequence[Problem], values: Sequence[T]) -> dict[str, list[T]]:
    """The values of the problems of each of COLUMNS that has problems. values: one for each problem."""
    found: dict[str, list[T]] = {name: [] for name in COLUMNS}
    for problem, value in zip(problems, values, strict=True):
        for name in columns(problem):
            found[name].append(value)
    return {name: part for name, part in found.items() if part}


def chance(problems: Sequence[Problem]) -> dict[str, float]:
    """Percent that random guesses have right in each of COLUMNS that has problems."""
    right = by_column(problems, [1 / len(p.choices) for p in problems])
    return {name: 100 * sum(part) / len(part) for name, part in right.items()}


def of_problems(problems: Sequence[Problem], images: Path) -> Iterator[Item]:
    """The problems as records of pairs. The answer is the letter alone: the score compares their likelihoods."""
    for problem in problems:
        value = {"question": question_text(problem), "answer": problem.letter}
        image = {} if problem.image is None else {"image": problem.image.relative_to(images).as_posix()}
        yield f"problems.json, problem {problem.id}", value | image
