"""Tables, plots and report.md from the results of all runs. Knows figures and files; runs nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from train.reproduce.claims import claims
from train.reproduce.plan import SEEDS, Plan
from train.reproduce.plots import plot
from train.reproduce.tables import Figures

_INTRO = """# The paper's claims, tried anew

LLaMA-Adapter (arXiv 2303.16199), its tables on ScienceQA, at the scale of this machine. Every figure below was
measured by the command; a claim is said to hold if its inequality does.
"""
_METHOD = """## How

- Base: {base}, frozen, bf16. Encoder: {encoder}, frozen. Projection: the paper's (multi-scale global
  features, one MLP, one vector added to every prompt), its first layer started from the main components of the
  training pictures' features.
- One prompt for all: the problem as in the paper, then "Answer: (". The answer learnt is the letter. Scored is the
  likeliest of the problem's own letters, in one forward pass.
- Data: {data}. {train:,} problems to train on, {val:,} for validation, {test:,} to test.
- {steps} steps of {batch_size} in every run but those of table 6; the last adapter counts. Seed 0, in table 5 also
  {seeds}.
- LoRA (PEFT, rank 8, all linear maps) and full fine-tuning (bf16 with fp32 copies for the optimiser) get the same
  problems in the same batches as the text-only adapter. None of the three sees a picture, and so they are compared
  on problems without one.
- Table 6 trains on {few} problems, each of its rows from the start, with a schedule of its own length.
- Unrelated text: the language reference that comes with Python (`pydoc_data.topics`).
"""


def write_report(
    figures: Figures, out: Path, command: str, data: str, seconds: float, jobs: int, sizes: dict[str, int]
) -> str:
    """Write CSV, PNG and report.md into `out`; returns the report's text."""
    from adapter.base.embedded import BASE, ENCODER

    tables = figures.tables()
    for table in tables:
        (out / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    pictures = {path.stem: path.name for path in plot(figures, out)}
    plan: Plan = figures.plan
    parts = [
        _INTRO,
        f"    {command}\n\n{_machine()}; {jobs} at a time. This call took {seconds / 60:.0f} minutes, "
        "without the runs that an earlier one had finished.\n",
        "## What held\n",
        "| held | claim | measured |\n| --- | --- | --- |\n" + "\n".join(c.line() for c in claims(figures)) + "\n",
    ]
    for table in tables:
        parts.append(table.markdown())
        name = "figure5" if table.name == "table5" else table.name
        if name in pictures:
            parts.append(f"![{name}]({pictures[name]})\n")
    parts.append(
        _METHOD.format(
            base=BASE,
            encoder=ENCODER,
            data=data,
            seeds=" and ".join(str(seed) for seed in SEEDS[1:]),
            steps=plan.steps,
            batch_size=plan.batch_size,
            few=plan.few,
            **sizes,
        )
    )
    text = "\n".join(parts)
    (out / "report.md").write_text(text, encoding="utf-8")
    return text


def _machine() -> str:
    python = platform.python_version()
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {python}, torch {torch.__version__}"
