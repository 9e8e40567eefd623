"""The model card that is saved with an adapter: what it does, how it was trained, its scores."""

from __future__ import annotations

import math

from adapter.method.adapter import Adapter
from adapter.method.config import AdapterConfig
from train.config import TrainConfig
from train.job import HeldOut

Scores = dict[str, float]
_SCORES = "## Scores"


def write_card(
    adapter: Adapter,
    config: TrainConfig,
    data: str,
    held_out: HeldOut,
    scores: Scores,
    base_scores: Scores,
    served: str,
    command: str = "",
) -> str:
    """The text of README.md.

    served: the precision and device of the base that `scores` were measured on. command: what trained the adapter,
    if not a recipe of this project.
    """
    about: AdapterConfig = adapter.config
    kind = "image" if about.is_visual else "text"
    steps = f"{config.steps}" if held_out.last_step == config.steps else f"{held_out.last_step} of {config.steps}"
    rates = f"learning rate {config.lr:g} (gates {config.gate_lr:g}), {steps} steps of {config.batch_size}"
    rescoring = (
        f"`python -m train {config.name} --score --out FOLDER` measures the table again for the adapter in FOLDER."
    )
    licence = "" if command else "license: apache-2.0\n"  # the licence of a user's own data is not known
    return f"""---
{licence}base_model: {about.base.name}
tags: [llama-adapter, {kind}]
---

# {config.name}

{about.description}

{adapter.num_parameters:,} trained parameters for {about.base.name}: {about.prompt_length} adaption prompts in
each of the topmost {about.insertion_layers} layers, one {about.gate_activation} gate a head.
Template: {about.template}.{_vision_sentence(about)}
Fingerprint of the base: tokenizer {about.base.tokenizer}, weights {about.base.weights}.

{_scores_section(config.name, scores, base_scores, served)}{_held_out_sentence(held_out)}

## How it was made

`{command or f"python -m train {config.name}"}`: AdamW, {rates}, cosine with warm-up, seed {config.seed}.
{rescoring if scores else ""}

{data}
"""


def with_scores(card: str, name: str, scores: Scores, base_scores: Scores, served: str) -> str:
    """A card with these scores in place of its own; how the adapter was made stays as it is written there."""
    section = _scores_section(name, scores, base_scores, served)
    start = card.find(_SCORES)
    if start < 0:
        return f"{card.rstrip()}\n\n{section.rstrip()}\n"
    table_end = card.rfind("|\n", start, _end_of_section(card, start)) + 2
    return card[:start] + section.rstrip() + "\n" + card[table_end:]


def _end_of_section(card: str, start: int) -> int:
    end = card.find("\n## ", start + 1)
    return end if end >= 0 else len(card)


def _scores_section(name: str, scores: Scores, base_scores: Scores, served: str) -> str:
    if not scores:
        return ""
    rows = "\n".join(
        f"| {measure} | {value:.3g} | {_number(base_scores.get(measure))} |" for measure, value in scores.items()
    )
    return f"""{_SCORES}

Measured on held-out data with the base as served by default ({served}); greedy decoding.

| measure | {name} | bare base |
| --- | --- | --- |
{rows}

"""


def _held_out_sentence(held_out: HeldOut) -> str:
    """Which loss it is that is given."""
    if not math.isfinite(held_out.loss):
        return "Held-out loss: not measured."
    which = "the lowest of its run" if held_out.step == held_out.best_step else "the last of its run"
    sentence = f"Held-out loss: {held_out.loss:.3f} nats a token after {held_out.step} steps, {which}"
    if held_out.best_step != held_out.step:
        sentence += f" (lowest: {held_out.best:.3f} after {held_out.best_step})"
    elif held_out.last_step != held_out.step:
        sentence += f" ({held_out.last:.3f} after the last, {held_out.last_step})"
    return f"{sentence}."


def _vision_sentence(config: AdapterConfig) -> str:
    vision = config.vision
    if vision is None:
        return ""
    return f" Pictures: {vision.encoder}, {vision.channels}, {vision.projection} projection."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
