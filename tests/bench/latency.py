"""How soon answers begin: alone, beside eight others, after a change of the adapter, after a start."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from adapter.base.llama import load_base
from adapter.base.template import Message
from adapter.method.adapter import Adapter
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.app_process import app_process
from tests.bench.programs import ROUNDS, median, print_head, print_row, ratio, timed
from tests.soak.people import Connection, Question

QUESTION = "How far away is the Moon, and how do we know?"
STORY = "Tell me a long story about a lighthouse."
FIRST = Question("Hello! Who are you?", through="chat", settings={"temperature": 0.0, "max_tokens": 1})


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
            cold.append(timed(partial(_load, name, engine)))
            adapter = _load(name, engine)
            engine.prompts.build([(adapter, 1.0)])
            warm.append(timed(partial(engine.prompts.build, [(adapter, 1.0)])))
        print_row(name, *(median([1000 * seconds for seconds in times]) for times in (cold, warm)))
    engine.close()
    _start_page()  # fills the caches
    starts = zip(*(_start_page() for _ in range(ROUNDS)), strict=True)
    print_head("seconds from the start of `python app.py`, warm cache", "to the page", "to the first words")
    print_row("", *(median(times) for times in starts))


def _load(name: str, engine: Engine) -> Adapter:
    adapter = AdapterStore().load(name, engine.base)
    adapter(engine.base.model)
    return adapter


def _request(text: str, tokens: int) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
    return GenerationRequest((Message("user", text),), sampling=sampling)


def _first_token(engine: Engine, text: str) -> float:
    return timed(lambda: list(engine.submit(_request(text, 1))))


def _start_page() -> tuple[float, float]:
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        with app_process(Path(folder), ready=()) as server:
            page = time.perf_counter() - start
            visitor = Connection(server.url, "127.0.0.1", signed_in=False)
            visitor.ask(FIRST)
            return page, time.perf_counter() - start
