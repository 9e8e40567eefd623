"""People at the page against the engine alone, with the same requests in turn."""

import time
from functools import partial

from tests.bench.engine import start_engine
from tests.bench.page import start_page
from tests.bench.programs import Run, measure_in_turn, median, print_head, print_row, ratio
from tests.bench.serving import TOKENS, Tasks

QUESTION = "Tell me a long story about the sea."
ADAPTERS = ("", "pirate", "extract", "")


def run() -> None:
    tasks, engine = Tasks(), start_engine()
    with start_page("page") as page:
        runs: dict[str, Run] = {"page": page.run, "engine alone": engine.run}
        print_head("people at once", *runs, "page against engine alone", "clients, % of a core")
        for count in (1, 4, 16):
            adapters = [ADAPTERS[number % len(ADAPTERS)] for number in range(count)]
            shares: list[float] = []

            def rate(run: Run, adapters=adapters, shares=shares) -> float:
                start = time.process_time()
                seconds, tokens = run(tasks([QUESTION], TOKENS, adapters))
                if run is runs["page"]:
                    shares.append(100 * (time.process_time() - start) / seconds)
                return tokens / seconds

            speeds = measure_in_turn({name: partial(rate, run) for name, run in runs.items()})
            print_row(count, *map(median, speeds.values()), ratio(*speeds.values()), median(shares, 0))
    engine.close()
