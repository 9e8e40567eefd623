"""What it costs that the frozen base reads along with a row: that row and eight others, with it and without.

Both are measured in turn. Figures are the rows' own decoding speeds; the other rows ask for nothing.
"""

from __future__ import annotations

import itertools
from contextlib import closing
from statistics import fmean

from adapter.base.llama import load_base
from adapter.base.template import Message
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.bench.programs import measure_in_turn, median, print_head, print_row, ratio
from tests.bench.serving import STORY

TOKENS = 160
ROUNDS = 8


def run() -> None:
    numbers = itertools.count(100)
    with closing(Engine(load_base(), AdapterStore())) as engine:

        def speeds(others: int, base_logprobs: bool) -> tuple[float, float]:
            """Tokens/s of the row, and the mean of the other rows'."""
            requests = [
                GenerationRequest(
                    (Message("user", f"{next(numbers)}. {STORY}"),),
                    "pirate",
                    sampling=SamplingParams(temperature=0, max_new_tokens=TOKENS),
                    base_logprobs=base_logprobs and row == 0,
                )
                for row in range(others + 1)
            ]
            answers = [engine.submit(request) for request in requests]
            row, *rest = [stats.tokens_per_s for answer in answers if (stats := list(answer)[-1].stats)]
            return row, fmean(rest) if rest else 0.0

        print_head("rows beside it", "of", "tokens/s without", "with", "ratio")
        for others in (0, 8):
            both: dict[bool, list[tuple[float, float]]] = {True: [], False: []}

            def measure(asked: bool, others: int = others, both: dict = both) -> float:
                both[asked].append(speeds(others, asked))
                return 0.0

            measure_in_turn({"without": lambda: measure(False), "with": lambda: measure(True)}, ROUNDS)
            for i, who in enumerate(["the row", "the others"][: 1 + bool(others)]):
                without, having = ([pair[i] for pair in both[asked][1:]] for asked in (False, True))
                print_row(others, who, median(without, 0), median(having, 0), ratio(having, without))
