"""How soon an answer begins, alone and beside eight others, and what it takes to change the adapter."""

from __future__ import annotations

import statistics
import time

from adapter.base.llama import load_base
from adapter.base.template import Message
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.bench.programs import ROUNDS, median, print_head, print_row, ratio

QUESTION = "How far away is the Moon, and how do we know?"
STORY = "Tell me a long story about a lighthouse."


def run() -> None:
    store = AdapterStore()
    engine = Engine(load_base(), store)
    alone, beside = [], []
    for number in range(ROUNDS):
        alone.append(_first_token(engine, f"{number}, alone. {QUESTION}"))
        others = [engine.submit(_request(f"{number}{row}. {STORY}", 256)) for row in range(8)]
        for answer in others:
            next(answer)
        beside.append(_first_token(engine, f"{number}, beside. {QUESTION}"))
        for answer in others:
            answer.close()
        list(engine.submit(_request("Are they gone?", 1)))  # the cancelled rows leave before it is read
    print_head("first token, ms", "alone", "beside 8 rows", "ratio")
    figures = [median([1000 * seconds for seconds in times], 0) for times in (alone, beside)]
    print_row("frozen base", *figures, ratio(beside, alone))
    print_head("change of the adapter, ms", "cold: read, check, project", "warm: prompts of a row")
    for name in store.names():
        cold, warm = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            adapter = AdapterStore().load(name, engine.base)
            adapter(engine.base.model)
            cold.append(time.perf_counter() - start)
            engine.prompts.build([(adapter, 1.0)])
            start = time.perf_counter()
            engine.prompts.build([(adapter, 1.0)])
            warm.append(time.perf_counter() - start)
        print_row(name, *(f"{1000 * statistics.median(times):.1f}" for times in (cold, warm)))
    engine.close()


def _request(text: str, tokens: int) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
    return GenerationRequest((Message("user", text),), sampling=sampling)


def _first_token(engine: Engine, text: str) -> float:
    start = time.perf_counter()
    list(engine.submit(_request(text, 1)))
    return time.perf_counter() - start
