"""What an answer's form costs: the same answers of `extract` with and without it, one by one and sixteen at once.

Both are asked in turn. Processor time counts, beside the clock: other programs do not disturb it.
"""

from __future__ import annotations

import itertools
import time
from contextlib import closing
from statistics import median

from adapter.base.llama import load_base
from adapter.base.template import Message
from adapter.serve.engine import Engine
from adapter.serve.form import NO_FORM
from adapter.serve.request import Client, GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.bench.serving import MESSAGES

ROUNDS = 6
ROWS = 16


def run() -> None:
    print(
        "| rows | tokens with / without | processor ms a token, with / without | ratio, processor | ratio, clock |"
    )
    print("| --- | --- | --- | --- | --- |")
    numbers = itertools.count(100)
    with closing(Engine(load_base(), AdapterStore())) as engine:
        for rows in (1, ROWS):
            found: list[list[tuple[int, float, float]]] = []
            for number in range(-1, ROUNDS):  # the first is for warming up
                # No prefix cache knows them, and all rows are of one message, so that they end together.
                texts = [f"{next(numbers)}. {MESSAGES[number % len(MESSAGES)]}" for _ in range(rows)]
                forms = (None, NO_FORM) if number % 2 else (NO_FORM, None)
                times = {form: _measure(engine, texts, form) for form in forms}
                found += [[times[None], times[NO_FORM]]] if number >= 0 else []
            tokens = [sum(pair[i][0] for pair in found) for i in (0, 1)]
            each = [median(1000 * pair[i][1] / pair[i][0] for pair in found) for i in (0, 1)]
            ratios = [
                median((pair[0][i] / pair[0][0]) / (pair[1][i] / pair[1][0]) for pair in found) for i in (1, 2)
            ]
            print(
                f"| {rows} | {tokens[0]} / {tokens[1]} | {each[0]:.2f} / {each[1]:.2f} | {ratios[0]:.3f} | "
                f"{ratios[1]:.3f} |",
                flush=True,
            )


def _measure(engine: Engine, texts: list[str], form: str | None) -> tuple[int, float, float]:
    """Tokens of all answers, and seconds of processor and clock from the first request to the last end."""
    sampling = SamplingParams(temperature=0, max_new_tokens=96)
    client = Client(session="free" if form == NO_FORM else "held")  # or the second would find the first's prompt
    begun, clock = time.process_time(), time.perf_counter()
    requests = [
        GenerationRequest((Message("user", text),), "extract", sampling=sampling, form=form, client=client)
        for text in texts
    ]
    answers = [engine.submit(request) for request in requests]
    tokens = sum(event.token_id is not None for answer in answers for event in answer)
    return tokens, time.process_time() - begun, time.perf_counter() - clock
