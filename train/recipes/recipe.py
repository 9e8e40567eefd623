"""What the recipes in `train/recipes/` have in common: settings, data to train on, and measures of the result."""

import hashlib
import importlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.config import VisionConfig
from adapter.serve.others import as_read
from train.config import DataConfig, RecipeFile, read_recipe
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure
from train.input.examples import Example, with_unseen_history
from train.recipes import sealed_sets

Measure = Callable[[Answerer], dict[str, Figure]]

_FOLDER = Path(__file__).parent
_MAX_NEW_TOKENS, _MAX_CHARACTERS = 200, 700  # of an answer that a rule judges; a longer one goes on and on


@dataclass(frozen=True)
class Examples:
    """The examples of a recipe that makes them itself, as `see` does, instead of reading files.

    of_split: those for "train" are endless, and those for "validation" finite and disjoint from them. digest: of
    what they are made from. prepare(adapter) fills buffers of a new adapter that are not trained, such as names of
    classes. vision: of a new adapter.
    """

    of_split: Callable[[str], Iterable[Example]]
    digest: str = ""
    prepare: Callable[[Adapter], None] = lambda _: None
    vision: VisionConfig | None = None

    def __call__(self, split: str) -> Iterable[Example]:
        return self.of_split(split)


@dataclass(frozen=True)
class MeasuredSets:
    """measure: scores an Answerer on test sets. files: those of the sets, relative to `train/recipes`."""

    measure: Measure
    files: tuple[str, ...]

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file's content, by file."""
        return {file: hashlib.sha256((_FOLDER / file).read_bytes()).hexdigest() for file in self.files}

    def describe(self) -> str:
        """A sentence for the card: the files and a digest of their content."""
        names = ", ".join(f"`{file}`" for file in self.files)
        digest = hashlib.sha256(b"".join(map(bytes.fromhex, self.digests.values()))).hexdigest()[:16]
        return f"The sets in `train/recipes`, {names}, have the digest {digest}."


@dataclass(frozen=True)
class Recipe:
    """One adapter that can be trained by name.

    data: what the adapter is trained and tested on, for its card. development: the sets that the recipe is developed
    on, measured when a training ends. sealed: those that decide nothing, measured when `--score` asks for them.
    told: turns that tell the base in words and examples what the adapter has learnt. examples: None if they are rows
    of files, which `recipe.yaml` names.
    """

    data: str
    told: Conversation
    development: MeasuredSets
    sealed: MeasuredSets
    examples: Examples | None = None


def recipe_of(
    name: str, development: MeasuredSets, measure: Measure, sealed: Sequence[str], examples: Examples | None = None
) -> Recipe:
    """The recipe of the folder `name`. measure: scores an Answerer on the sealed sets; sealed: their own files."""
    text = (_FOLDER / name / "card.md").read_text(encoding="utf-8").strip()
    told = sealed_sets.conversation_of(*sealed_sets.read_yaml(_FOLDER / name / "told.yaml"))
    files = (*sealed_sets.SHARED, *(f"sealed/{file}" for file in sealed))
    return Recipe(text, told, development, MeasuredSets(measure, files), examples)


class RuledSet(NamedTuple):
    """Conversations to be answered, and the rule by which an answer to one of them is right."""

    measure: str
    conversations: list[Conversation]
    is_right: Callable[[str, Conversation], bool]

    def judge(self, answers: Sequence[str]) -> list[bool]:
        """Which answers, one a conversation, are right. One of more than 700 characters, one that loops, and one that
        is given more than three times is not.
        """
        given = Counter(answers)
        return [
            len(text) <= _MAX_CHARACTERS and not sealed_sets.loops(text, 3) and given[text] <= sealed_sets.MAX_TIMES
            and self.is_right(text, conversation)
            for text, conversation in zip(answers, self.conversations, strict=True)
        ]  # fmt: skip


def recipe_by_rule(
    name: str, sets: Callable[[bool], list[RuledSet]], development: Sequence[str], sealed: Sequence[str]
) -> Recipe:
    """The recipe of the folder `name`, scored by rules that see only an answer and its conversation.

    sets(is_sealed): the sealed sets or those of development. The first is asked again after other adapters (in
    development: after exchanges of history.tsv) and after long answers of the base; its rule also judges the
    follow-ups to those. development, sealed: names of the sets' files, in the recipe's folder and in `sealed/`.
    """

    def scores(answerer: Answerer, is_sealed: bool) -> dict[str, Figure]:
        asked = sets(is_sealed)
        first, whose = asked[0], "adapters" if is_sealed else "talk"
        several = sealed_sets.some(first.conversations)
        if is_sealed:
            others = sealed_sets.after_others(answerer.base, name, several)
        else:
            others = with_unseen_history(first.conversations)
        late, follow_ups = sealed_sets.after_long_talk(answerer.base, several, is_sealed)
        asked.append(first._replace(measure=f"{first.measure}, after other {whose}", conversations=others))
        for where, talked in ("after long talk", late), ("follow-ups to long talk", follow_ups):
            asked.append(first._replace(measure=f"{first.measure}, {where}", conversations=talked))
            read = [as_read(one, {name}, "first sentence") for one in talked]
            asked.append(first._replace(measure=f"{first.measure}, {where}, first sentences", conversations=read))
        figures: dict[str, Figure] = {}
        for ruled in asked:
            answers = answerer.generate(ruled.conversations, max_new_tokens=_MAX_NEW_TOKENS)
            figures |= sealed_sets.percent(ruled.measure, ruled.judge(answers))
        return figures

    files = (*(f"{name}/{file}" for file in development), "development_talk.yaml")
    measured = MeasuredSets(partial(scores, is_sealed=False), files)
    return recipe_of(name, measured, partial(scores, is_sealed=True), [*sealed, "long_talk.yaml"])


def load_recipe(name: str, tokenizer: Any) -> Recipe:
    """Recipe `name`. tokenizer: of the base."""
    return importlib.import_module(f"train.recipes.{name}.recipe").recipe(tokenizer)


def record_scoring(name: str, sets: MeasuredSets, adapter: str, commit: str) -> tuple[int, int, str]:
    """Writes a scoring of sealed sets into `ledger.json`, before it is made: the ledger outlives adapters and cards.

    adapter: its digest. Returns how often the recipe has scored its most scored file, in any version: with this
    adapter, and with all adapters; and what the sets have decided, which makes them spent ("" if they have not
    decided anything).
    """
    file = _FOLDER / "ledger.json"
    ledger = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for scored, digest in sets.digests.items():
        entry = ledger.setdefault(f"{scored} {digest[:16]}", {"spent": "", "scorings": []})
        scoring = {"recipe": name, "adapter": adapter, "date": date.today().isoformat(), "commit": commit}
        entry["scorings"].append(scoring)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
    by_file: dict[str, list[str]] = {scored: [] for scored in sets.digests}
    for key, entry in ledger.items():
        by_file.get(key.split()[0], []).extend(o["adapter"] for o in entry["scorings"] if o["recipe"] == name)
    most = max(by_file.values(), key=len)
    spent = [entry["spent"] for key, entry in ledger.items() if entry["spent"] and key.split()[0] in by_file]
    return most.count(adapter), len(most), "; ".join(spent)


def project_recipe(name: str, assignments: Sequence[str]) -> RecipeFile:
    """Reads recipe `name` of the project. A path that does not exist here is taken from the project's folder."""

    def found(path: str) -> str:
        in_project = _FOLDER.parents[1] / path
        return str(in_project) if in_project.exists() and not os.path.exists(path) else path

    def in_project(data: DataConfig) -> DataConfig:
        held_out = found(data.validation) if isinstance(data.validation, str) else data.validation
        return replace(data, path=found(data.path), validation=held_out)

    recipe = read_recipe(_FOLDER / name / "recipe.yaml", assignments)
    start = None if recipe.start_from is None else found(recipe.start_from)
    return replace(recipe, data=tuple(map(in_project, recipe.data)), start_from=start)
