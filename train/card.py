"""The model card that is saved with an adapter: what it does, its scores, how it was trained."""

import datetime
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter.method.adapter import Adapter
from adapter.method.config import AdapterConfig, base_label
from train.config import TrainConfig
from train.evaluate.intervals import Figure
from train.evaluate.report import code_version, format_figure, markdown_table
from train.job import Outcome

_SEALED = "## Scores on sealed test sets"
_TOLD = """The base that is told reads `told.yaml` of the recipe before each conversation, and is held to a form
where the adapter is."""
_CARD = Path(__file__).with_name("card.md")


@dataclass(frozen=True)
class Measured:
    """scores: by system, the adapter first, then by measure. served: precision and device; sets: a sentence."""

    scores: dict[str, dict[str, Figure]]
    served: str
    sets: str = ""


def write_card(
    adapter: Adapter,
    config: TrainConfig,
    data: str,
    outcome: Outcome,
    trained_on: str,
    development: Measured | None = None,
    command: Sequence[str] = (),
    start: str = "",
) -> str:
    """The text of README.md. data: what it was trained on; trained_on: precision and processor; command: with the
    name of a recipe of this project, if it is one's; start: digest of the adapter that the run went on from.
    """
    about: AdapterConfig = adapter.config
    shown = {"start_from": lambda _: "FOLDER", "base": base_label}  # no paths of this machine
    pairs = (word.partition("=") for word in command)
    words = [f"{key}={shown.get(key, str)(value)}" if equals else key for key, equals, value in pairs]
    loss = "not measured"
    if math.isfinite(outcome.loss):
        loss = f"{outcome.loss:.3f} nats a token after {outcome.step} of {outcome.steps} steps"
    started = f"It went on from the adapter with the digest {start}.\n" if start else ""
    scoring = f"""
`python -m train {config.name} --score --out FOLDER` measures the adapter in FOLDER on the sealed test sets.
"""
    scores = "" if development is None else f"""## Scores on development sets

Sets that decisions about the recipe were made by: {development.served}, greedy decoding.
{_TOLD}

{_table(development)}

"""  # fmt: skip
    return _CARD.read_text(encoding="utf-8").format(
        adapter=adapter,
        about=about,
        config=config,
        data=data,
        loss=loss,
        started=started,
        steps=f"{outcome.steps} of {config.steps}" if outcome.steps < config.steps else config.steps,
        trained_on=trained_on,
        licence="license: apache-2.0\n" if words else "",  # the licence of a user's own data is not known
        kind="image" if about.is_visual else "text",
        parts=_parts(about),
        scores=scores,
        run=f"python -m train {shlex.join(words) or '--config recipe.yaml'}",
        tuning="" if config.tuning_lr is None else f", tuning {config.tuning_lr:g}",
        date=datetime.date.today(),
        commit=commit(),
        wall=_duration(outcome.wall),
        processor=_duration(outcome.processor),
        scoring=scoring if words else "",
    )


def with_sealed_scores(card: str, scores: Measured, digest: str, scored: tuple[int, int, str], code: str) -> str:
    """The card with other scores on the sealed sets. digest: of the adapter; scored: what `record_scoring`
    returns; code: `commit()`.
    """
    head, *tail = (text for text in re.split(r"(?m)^(?=## )", card) if not text.startswith(_SEALED))
    own, of_all, decided = scored
    spent = f". Some have decided something and are spent: {decided}" if decided else " or chosen by them"
    today, were = datetime.date.today(), "was" if own == 1 else "were"
    section = f"""{_SEALED}

Nothing was trained on these sets{spent}. Of {of_all} scorings in `train/recipes/ledger.json`, {own} {were} of this
adapter, {digest}, the last on {today} with the code of {code}: {scores.served}, greedy decoding.
{_TOLD}

{_table(scores)}
{_outdone(*scores.scores.values())}"""
    return "\n".join([f"{head.rstrip()}\n", section, *(["".join(tail)] if tail else [])])


def _outdone(own: dict[str, Figure], *others: dict[str, Figure]) -> str:
    """A line on the shares in which the base, bare or told, scored as high or higher; empty if there are none.

    What is the same for all says nothing about any: the encoder's share, beside which `see` is measured.
    """
    better = []
    for what in (what for what in own if what[-1] == "%"):
        value, rivals = own[what].value, [other[what].value for other in others if what in other]
        if max(rivals, default=-1) >= value and {*rivals} != {value}:
            better.append(what)
    return f"The base, bare or told, scored as high or higher in: {'; '.join(better)}.\n" if better else ""


def _table(measured: Measured) -> str:
    """In Markdown: a line for each measure, with 95 % intervals and the number of items."""
    first = next(iter(measured.scores.values()))
    rows = [
        (what, *(format_figure(s[what]) if what in s else "-" for s in measured.scores.values()), f"{figure.n:,}")
        for what, figure in first.items()
    ]
    return f"{markdown_table(('measure', *measured.scores, 'n'), rows)}\n\n{measured.sets}"


def _parts(config: AdapterConfig) -> str:
    """Lines on what is beside the prompts."""
    lines, tuning, vision = "", config.tuning, config.vision
    if tuning is not None:
        layers = tuning.layers or config.base.num_hidden_layers
        lines += f"Beside them, in the topmost {layers} layers: {tuning.kinds}.\n"
    if vision is not None:
        lines += f"Pictures: {vision.encoder}, {vision.channels}, {vision.projection} projection.\n"
    return lines


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def commit() -> str:
    found = code_version()
    return "an unknown commit" if found is None else f"commit {found}"
