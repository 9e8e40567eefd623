"""The model card that is saved with an adapter: what it does, how it was trained, its scores."""

from __future__ import annotations

from adapter.method.adapter import Adapter
from adapter.method.config import AdapterConfig
from train.config import TrainConfig

Scores = dict[str, float]


def write_card(
    adapter: Adapter,
    config: TrainConfig,
    data: str,
    held_out_loss: float,
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
    rows = "\n".join(
        f"| {name} | {value:.3g} | {_number(base_scores.get(name))} |" for name, value in scores.items()
    )
    rates = f"learning rate {config.lr:g} (gates {config.gate_lr:g}), {config.steps} steps of {config.batch_size}"
    table = f"""## Scores

Measured on held-out data with the base as served by default ({served}); greedy decoding.

| measure | {config.name} | bare base |
| --- | --- | --- |
{rows}

"""
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

{table if scores else ""}Held-out loss at the end of training: {held_out_loss:.3f} nats a token.

## How it was made

`{command or f"python -m train {config.name}"}`: AdamW, {rates}, cosine with warm-up, seed {config.seed}.
{rescoring if scores else ""}

{data}
"""


def _vision_sentence(config: AdapterConfig) -> str:
    vision = config.vision
    if vision is None:
        return ""
    return f" Pictures: {vision.encoder}, {vision.channels}, {vision.projection} projection."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
