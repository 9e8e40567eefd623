"""What an adapter costs at serving: per token, to swap in, and in memory; and what a start costs.

With and without take turns in one process; the figures are medians.
"""

from __future__ import annotations

import resource
import statistics
import time

from adapter.chat import Message
from adapter.engine import Engine
from adapter.llama import load_base
from adapter.request import GenerationRequest
from adapter.sampling import SamplingParams
from adapter.store import AdapterStore
from tests.bench.base import decode_speed

ROUNDS = 7


def run() -> None:
    start = time.perf_counter()
    base = load_base()
    loaded = time.perf_counter() - start
    store = AdapterStore()
    engine = Engine(base, store)
    first = _first_token(engine, None)
    print(f"{base.describe()}; loaded from the cache in {loaded:.1f} s, then first token in {first:.2f} s\n")
    names = store.names()
    speeds: dict[str | None, list[float]] = {name: [] for name in (None, *names)}
    for _ in range(ROUNDS):
        for name, speed in speeds.items():
            speed.append(decode_speed(engine, name))
    print("| adapter | decoding, tokens/s | against the bare base | cold swap, ms | warm swap, ms |")
    print("| --- | --- | --- | --- | --- |")
    for name, speed in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(speed, speeds[None], strict=True))
        swaps = f"{_cold(base, name):.1f} | {_warm(engine, name):.2f}" if name else "- | -"
        print(f"| {name or 'none'} | {statistics.median(speed):.1f} | {ratio:.3f} | {swaps} |")
    engine.close()
    print(f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB")


def _first_token(engine: Engine, adapter: str | None) -> float:
    """Seconds from the request to its first token."""
    start = time.perf_counter()
    request = GenerationRequest(
        (Message("user", "Hello!"),), adapter=adapter, sampling=SamplingParams(max_new_tokens=1)
    )
    list(engine.submit(request))
    return time.perf_counter() - start


def _cold(base, name: str) -> float:
    """Milliseconds to read an adapter from disk and project its prompts, the file being in the page cache."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        AdapterStore().load(name, base)(base.model)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _warm(engine: Engine, name: str) -> float:
    """Milliseconds that the first token of an answer takes longer when the adapter is another than before."""
    _first_token(engine, name)
    extra = []
    for _ in range(ROUNDS):
        plain = _first_token(engine, None)
        extra.append(_first_token(engine, name) - plain)
    return 1000 * statistics.median(extra)
