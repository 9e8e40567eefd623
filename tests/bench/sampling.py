"""What sampling costs: the same questions with each setting and greedily, 1, 8 and 16 at once.

All are asked in turn. Processor time counts: other programs do not disturb it. No drafts, which would come true
more often for one setting than for another.
"""

from __future__ import annotations

import itertools
import time
from contextlib import closing
from statistics import median

from adapter.base.llama import load_base
from adapter.base.template import Message
from adapter.serve import engine as engine_module
from adapter.serve.engine import Engine
from adapter.serve.request import Client, GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.bench.serving import MESSAGES

ROUNDS = 5
TOKENS = 96
SETTINGS = {
    "greedy": {"temperature": 0.0},
    "greedy, penalty 1.1": {"temperature": 0.0, "repetition_penalty": 1.1},
    "the page's": {"repetition_penalty": 1.1},
    "temperature 0.8": {"temperature": 0.8, "top_p": 1.0},
    "temperature 0.8, top-k 40": {"temperature": 0.8, "top_p": 1.0, "top_k": 40},
    "temperature 0.8, min-p 0.05": {"temperature": 0.8, "top_p": 1.0, "min_p": 0.05},
}


def run() -> None:
    engine_module._draft = lambda row, rows: []
    print("| rows | " + " | ".join(SETTINGS) + " |\n" + "| --- " * (1 + len(SETTINGS)) + "|")
    with closing(Engine(load_base(), AdapterStore())) as engine:
        for rows in (1, 8, 16):
            found: list[list[float]] = []
            for number in range(-1, ROUNDS):  # the first is for warming up
                times = [_measure(engine, rows, number, name) for name in SETTINGS]
                found += [times] if number >= 0 else []
            greedy = median(times[0] for times in found)
            ratios = [median(times[i] / times[0] for times in found) for i in range(1, len(SETTINGS))]
            print(
                f"| {rows} | {greedy:.2f} ms a token | " + " | ".join(f"{r:.3f}" for r in ratios) + " |",
                flush=True,
            )


_numbers = itertools.count(100)


def _measure(engine: Engine, rows: int, number: int, name: str) -> float:
    """Milliseconds of processor time a token, prompts included."""
    params = SamplingParams(max_new_tokens=TOKENS, seed=1, **SETTINGS[name])  # type: ignore[arg-type]
    begun = time.process_time()
    answers = [
        # No prefix cache knows them.
        engine.submit(
            GenerationRequest(
                (Message("user", f"{next(_numbers)}. {MESSAGES[number % len(MESSAGES)]}"),),
                sampling=params,
                client=Client(session=name),
            )
        )
        for _ in range(rows)
    ]
    tokens = sum(event.token_id is not None for answer in answers for event in answer)
    return 1000 * (time.process_time() - begun) / tokens
