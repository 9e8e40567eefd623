"""The benchmark on disk, in ScienceQA's published layout: problems.json, pid_splits.json, <split>/<id>/image.png.

Knows files; questions and pictures come from beside it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter.errors import AdapterError, first_line
from train.reproduce.scenes.drawing import draw
from train.reproduce.scenes.questions import Question, Skill, questions

PROBLEMS, SPLITS, IMAGE = "problems.json", "pid_splits.json", "image.png"


def write_benchmark(folder: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """Writes the benchmark into `folder`, which is made, and returns it. The same seed gives the same bytes.

    counts: problems of train, val and test. Those of train and val are drawn alike and do not overlap; those of
    test have combinations, wordings and words of their own. Raises AdapterError if the folder cannot be written.
    """
    known = questions(counts["train"] + counts["val"], test=False, seed=2 * seed)
    parts = {
        "train": known[: counts["train"]],
        "val": known[counts["train"] :],
        "test": questions(counts["test"], test=True, seed=2 * seed + 1),
    }
    rng = random.Random(seed)
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {}
    try:
        for split, pairs in parts.items():
            ids = [str(len(problems) + 1 + i) for i in range(len(pairs))]
            for number, (question, skill) in zip(ids, pairs, strict=True):
                problems[number] = _problem(question, skill, split, rng)
                if question.scene is not None:
                    path = folder / split / number / IMAGE
                    path.parent.mkdir(parents=True, exist_ok=True)
                    draw(question.scene).save(path)
            splits[split] = ids
        splits["trainval"] = splits["train"] + splits["val"]
        folder.mkdir(parents=True, exist_ok=True)
        # The splits last: a folder that has them is complete.
        (folder / PROBLEMS).write_text(json.dumps(problems, indent=1) + "\n", encoding="utf-8")
        (folder / SPLITS).write_text(json.dumps(splits) + "\n", encoding="utf-8")
    except OSError as error:
        raise AdapterError(
            f"The benchmark cannot be written to '{folder.name}'. Give another folder.",
            f"{folder}: {first_line(error)}",
        ) from error
    return folder


def _problem(question: Question, skill: Skill, split: str, rng: random.Random) -> dict[str, Any]:
    return {
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
        "hint": question.hint,
        "image": None if question.scene is None else IMAGE,
        "task": "closed choice",
        "grade": f"grade{rng.choice(skill.grades)}",
        "subject": skill.subject,
        "topic": skill.topic,
        "category": skill.name,
        "skill": skill.name,
        "lecture": "",
        "solution": "",
        "split": split,
    }
