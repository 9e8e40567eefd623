"""What options of a request cost: sampling, `extract`'s form, log-probabilities, X-ray.

The same questions are asked in each way in turn, one by one and many at once. Processor time counts: other
programs disturb it less than the clock. Without drafts, which come true more often for one way than for another.
"""

import itertools
import time
from contextlib import closing
from dataclasses import replace
from statistics import median

from adapter.base.llama import load_base
from adapter.base.template import Message
from adapter.serve import engine as engine_module
from adapter.serve.engine import Engine
from adapter.serve.form import NO_FORM
from adapter.serve.request import Client, GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.bench.programs import print_head, print_row
from tests.bench.serving import MESSAGES

ROUNDS, TOKENS = 6, 96
GREEDY = GenerationRequest(sampling=SamplingParams(temperature=0, max_new_tokens=TOKENS, seed=1))


# In each table the first way is what the others are compared with.
TABLES = {
    "sampling": {
        "greedy": GREEDY,
        "greedy, penalty 1.1": replace(GREEDY, sampling=replace(GREEDY.sampling, repetition_penalty=1.1)),
        "the page's": replace(GREEDY, sampling=SamplingParams(max_new_tokens=TOKENS, repetition_penalty=1.1)),
    },
    "form": {
        "extract without its form": replace(GREEDY, adapter="extract", form=NO_FORM),
        "with it": replace(GREEDY, adapter="extract"),
    },
    "log-probabilities": {
        "pirate": replace(GREEDY, adapter="pirate"),
        "with the five likeliest": replace(GREEDY, adapter="pirate", top_logprobs=5),
    },
    "X-ray": {
        "pirate": replace(GREEDY, adapter="pirate"),
        "the base reads along": replace(GREEDY, adapter="pirate", base_logprobs=True),
    },
}
_numbers = itertools.count(100)  # no prefix cache knows a question


def run() -> None:
    engine_module._draft = lambda row, rows: []
    with closing(Engine(load_base(), AdapterStore())) as engine:
        for table, ways in TABLES.items():
            first, *others = ways
            print_head(f"{table}: rows", f"{first}, processor ms a token", *(f"{name}, ratio" for name in others))
            for rows in (1, 8, 16):
                # The first round is for warming up.
                times = [
                    [_measure(engine, rows, number, way, name) for name, way in ways.items()]
                    for number in range(-1, ROUNDS)
                ][1:]
                ratios = [median(found[i] / found[0] for found in times) for i in range(1, len(ways))]
                print_row(rows, f"{median(found[0] for found in times):.2f}", *(f"{r:.3f}" for r in ratios))


def _measure(engine: Engine, rows: int, number: int, way: GenerationRequest, name: str) -> float:
    """Milliseconds of processor time a token, prompts included. All rows have one message and end together."""
    client = Client(session=name)  # or one way would find the prompts that another one has read
    texts = [f"{next(_numbers)}. {MESSAGES[number % len(MESSAGES)]}" for _ in range(rows)]
    begun = time.process_time()
    answers = [engine.submit(replace(way, messages=(Message("user", text),), client=client)) for text in texts]
    tokens = sum(event.token_id is not None for answer in answers for event in answer)
    return 1000 * (time.process_time() - begun) / tokens
