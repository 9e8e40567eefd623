"""The benchmark's problems as prompts and examples, with features of their pictures, and answers by likelihood."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock
from tqdm import tqdm

from adapter.base.embedded import ENCODER
from adapter.base.encoder import load_encoder
from adapter.base.image_file import open_image
from adapter.base.template import Message, encode_answer, encode_prompt
from adapter.errors import AdapterError, first_line
from adapter.method.vision import VisualFeatures
from train.evaluate.answerer import Answerer
from train.evaluate.tasks import drawn
from train.formats.scienceqa import LETTERS, Problem, problems, question_text
from train.input.examples import Example

# What follows the problem: the options are written "(A)", so that the next token is the letter.
_CUE = "\nAnswer: ("
TEMPLATE: Final = "raw"
MAX_LENGTH = 1024  # tokens of a training example
# 2,400, 240 and 720 problems in ScienceQA's layout, drawn and worded by rule, once (seed 7).
_DRAWN = Path(__file__).with_name("benchmark.zip")


@dataclass(frozen=True)
class Benchmark:
    """Problems by split, and the features of their pictures."""

    splits: dict[str, tuple[Problem, ...]]

    @cached_property
    def features(self) -> dict[str, VisualFeatures]:
        """By the problem's id; encoded once a process."""
        images = [(p.id, p.image) for part in self.splits.values() for p in part if p.image is not None]
        encoder = load_encoder(ENCODER)
        levels = [encoder.encode([open_image(path)]).levels for _, path in tqdm(images, "pictures", disable=None)]
        return {number: VisualFeatures(found) for (number, _), found in zip(images, levels, strict=True)}

    @property
    def fingerprint(self) -> str:
        """Changes with the problems and whether they have pictures, not with what these show."""
        lines = [f"{p.id} {prompt(p)} {p.letter} {bool(p.image)}" for part in self.splits.values() for p in part]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def examples(self, shown: bool, count: int, seed: int, plain: bool = False) -> Iterator[Example]:
        """`count` training problems, 0 for all, endless, drawn anew each epoch.

        shown: with their pictures. plain: only those that have none.
        """
        chosen = [p for p in self.splits["train"] if not (plain and p.image)][: count or None]
        features = self.features if shown else {}
        generator = torch.Generator().manual_seed(seed)
        while True:
            for i in torch.randperm(len(chosen), generator=generator).tolist():
                yield Example((prompt(chosen[i]),), chosen[i].letter, features.get(chosen[i].id))


def prompt(problem: Problem) -> Message:
    """What the base reads before it writes the letter."""
    return Message("user", question_text(problem) + _CUE)


def answer(
    answerer: Answerer, problems: Sequence[Problem], benchmark: Benchmark, shown: bool = True
) -> dict[str, list[Any]]:
    """Answers each problem by the likeliest of its letters. shown: with the pictures.

    Returns for each problem whether the answer is right, and the right letter's negative log-likelihood in nats.
    """
    tokenizer, features = answerer.base.tokenizer, benchmark.features if shown else {}
    letters = [encode_answer(tokenizer, letter, TEMPLATE)[0] for letter in LETTERS]
    prompts = [encode_prompt(tokenizer, [prompt(p)], TEMPLATE) for p in problems]
    logs = answerer.next_logprobs(prompts, letters, [features.get(p.id) for p in problems])
    pairs = list(zip(logs, problems, strict=True))
    return {
        "right": [int(int(row[: len(p.choices)].argmax()) == p.answer) for row, p in pairs],
        "loss": [round(-float(row[p.answer]), 4) for row, p in pairs],
    }


def drawn_benchmark(folder: Path) -> Path:
    """Unpacks the drawn benchmark into `folder`, unless it is there, and returns it. Raises AdapterError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # against the same command in a second shell
            if not (folder / "pid_splits.json").exists():
                partial = folder.with_name(f".{folder.name}.part")
                shutil.unpack_archive(_DRAWN, partial)
                partial.rename(folder)
    except OSError as error:
        sentence = f"The benchmark cannot be written to '{folder.name}'. Give another folder."
        raise AdapterError(sentence, f"{folder}: {first_line(error)}") from error
    return folder


def open_benchmark(folder: Path, counts: Mapping[str, int]) -> Benchmark:
    """The benchmark in `folder`: at most so many problems of train, val and test, spread evenly.

    Raises AdapterError for what is missing or broken.
    """
    splits = {split: tuple(drawn(problems(folder, split), count)) for split, count in counts.items()}
    train, test = ({bool(p.image) for p in splits[split]} for split in ("train", "test"))
    named = [p.image for part in splits.values() for p in part if p.image]
    if len(train) < 2 or False not in test or not all(image.is_file() for image in named):
        raise AdapterError(
            f"'{folder.name}' needs training problems with and without pictures, test problems without, and the "
            "pictures that are named. Fetch ScienceQA's images too.",
            str(folder),
        )
    return Benchmark(splits)
