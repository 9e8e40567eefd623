"""The embedded base in every quantisation on this machine's CPU: speed, memory and perplexity.

Speed is greedy decoding of one row by the engine, measured in turn, medians over the rounds. Perplexity is that of
English prose: scikit-learn's descriptions of its bundled data sets.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import sklearn.datasets
import torch
import torch.nn.functional as F

from adapter.base.llama import Base, load_base
from adapter.serve.engine import Engine
from adapter.serve.store import AdapterStore
from tests.bench.serving import decode_speed

FORMATS = ("auto", "none", "nf4", "int8")
ROUNDS = 5
WINDOW = 512  # tokens


def run() -> None:
    bases = [load_base(quantization=name, device="cpu") for name in FORMATS]
    engines = [Engine(base, AdapterStore()) for base in bases]
    speeds: list[list[float]] = [[] for _ in bases]
    for _ in range(ROUNDS):
        for speed, engine in zip(speeds, engines, strict=True):
            speed.append(decode_speed(engine))
    text = "\n".join(
        path.read_text() for path in sorted((Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))
    )
    print("| quantization | decoding, tokens/s | against none | memory, MB | perplexity |")
    print("| --- | --- | --- | --- | --- |")
    medians = [statistics.median(speed) for speed in speeds]
    for base, median in zip(bases, medians, strict=True):
        print(
            f"| {base.quantization} | {median:.1f} | {median / medians[1]:.2f} | "
            f"{base.memory_bytes / 2**20:.0f} | {perplexity(base, text):.2f} |"
        )
    for engine in engines:
        engine.close()


@torch.no_grad()
def perplexity(base: Base, text: str, windows: int = 12) -> float:
    """exp of the mean loss over the first `windows` windows of the text."""
    ids = base.tokenizer(text).input_ids[: windows * WINDOW]
    losses = []
    for start in range(0, len(ids) - 1, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]], device=base.device)
        logits = base.model(input_ids=window).logits[0, :-1].float()
        losses.append(F.cross_entropy(logits, window[0, 1:]))
    return torch.stack(losses).mean().exp().item()
