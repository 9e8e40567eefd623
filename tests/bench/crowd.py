"""People at the page against the engine alone, with the same requests in turn."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.bench.engine import start_engine
from tests.bench.page import start_page
from tests.bench.programs import Program, measure_in_turn, median, print_head, print_row, ratio
from tests.bench.serving import Tasks

COUNTS = (1, 4, 16)
TOKENS = 96
QUESTION = "Tell me a long story about the sea."
ADAPTERS = ("", "pirate", "extract", "")


def run() -> None:
    tasks = Tasks()
    print_head(
        "people at once", "page, tokens/s in all", "engine alone", "page against engine", "clients, % of a core"
    )
    engine = start_engine()
    with start_page("page") as page:
        for count in COUNTS:
            adapters = [ADAPTERS[number % len(ADAPTERS)] for number in range(count)]
            shares: list[float] = []

            def rate(program: Program, adapters=adapters, shares=shares) -> float:
                start = time.process_time()
                seconds, tokens = program.run(tasks([QUESTION], TOKENS, adapters))
                if program is page:
                    shares.append(100 * (time.process_time() - start) / seconds)
                return tokens / seconds

            variants: dict[str, Callable[[], float]] = {"page": lambda: rate(page), "engine": lambda: rate(engine)}
            speeds = measure_in_turn(variants)
            alone = speeds["engine"]
            print_row(
                count, median(speeds["page"]), median(alone), ratio(speeds["page"], alone), median(shares, 0)
            )
    engine.close()
