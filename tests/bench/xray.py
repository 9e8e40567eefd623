"""What it costs that the frozen base reads along with a row: that row and eight others, with it and without.

Both are measured in turn. Speeds are the rows' own; the other rows ask for nothing. Processor time counts beside
the clock: other programs disturb it less.
"""

from __future__ import annotations

import itertools
import time
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

        def speeds(others: int, base_logprobs: bool) -> tuple[float, float, float]:
            """Tokens/s of the row, the mean of the other rows', and tokens of all by second of the processor."""
            requests = [
                GenerationRequest(
                    (Message("user", f"{next(numbers)}. {STORY}"),),
                    "pirate",
                    sampling=SamplingParams(temperature=0, max_new_tokens=TOKENS),
                    base_logprobs=base_logprobs and row == 0,
                )
                for row in range(others + 1)
            ]
            began = time.process_time()
            answers = [engine.submit(request) for request in requests]
            stats = [each for answer in answers if (each := list(answer)[-1].stats)]
            seconds = time.process_time() - began
            row, *rest = [each.tokens_per_s for each in stats]
            return row, fmean(rest) if rest else 0.0, sum(each.new_tokens for each in stats) / seconds

        print_head("rows beside it", "of", "tokens/s without", "with", "ratio")
        for others in (0, 8):
            both: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}

            def measure(asked: bool, others: int = others, both: dict = both) -> float:
                both[asked].append(speeds(others, asked))
                return 0.0

            measure_in_turn({"without": lambda: measure(False), "with": lambda: measure(True)}, ROUNDS)
            for i, who in enumerate(["the row", "the others", "all, by processor time"]):
                if who == "the others" and not others:
                    continue
                without, having = ([pair[i] for pair in both[asked][1:]] for asked in (False, True))
                print_row(others, who, median(without, 0), median(having, 0), ratio(having, without))
