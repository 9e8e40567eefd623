"""Serving: one row beside llama.cpp and transformers, the cost of an adapter, and many rows in one batch.

All variants are measured in turn in each round. Figures are medians over the rounds, ratios medians of the rounds'
ratios.
"""

from __future__ import annotations

import resource
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import torch

from adapter.base.llama import Base, load_base
from adapter.base.template import Message, encode_prompt
from adapter.method.image_file import open_image
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.bench.llama_peer import LlamaCpp

ROUNDS = 7
TOKENS = 64
STORY = (Message("user", "Tell me a long story about a lighthouse."),)
PICTURE = Path(sysconfig.get_path("purelib")) / "skimage/data/coffee.png"


class BaseWithoutStop(Base):
    """A base without end tokens: all answers have the length that was requested."""

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset()


def run() -> None:
    start = time.perf_counter()
    base = BaseWithoutStop(**vars(load_base()))
    loaded = time.perf_counter() - start
    store = AdapterStore()
    engine = Engine(base, store)
    first = first_token(engine, GenerationRequest(STORY))
    print(f"{base.describe()}; loaded from the cache in {loaded:.1f} s, then first token in {first:.2f} s\n")
    _measure_one_row(engine, store)
    _measure_batches(engine, store)
    _measure_swaps(engine, store)
    engine.close()
    print(f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB")


def _measure_one_row(engine: Engine, store: AdapterStore) -> None:
    reference = load_base(quantization="none", device=str(engine.base.device))
    llama_cpp = LlamaCpp.start(torch.get_num_threads(), encode_prompt(reference.tokenizer, STORY), TOKENS)
    variants: dict[str, Callable[[], float]] = {
        "transformers generate(), bf16": lambda: generate_speed(reference),
        "engine, frozen base": lambda: decode_speed(engine),
    }
    if llama_cpp is not None:
        variants = {"llama.cpp, Q4_1": llama_cpp.speed, **variants}
    for name in store.names():
        request = _request(name, store)
        variants[f"engine, {name}"] = lambda request=request: decode_speed(engine, request)  # type: ignore[misc]
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, measure in variants.items():
            speeds[name].append(measure())
    if llama_cpp is not None:
        llama_cpp.close()
    print("| one row | tokens/s | against llama.cpp | against generate() | against the frozen base |")
    print("| --- | --- | --- | --- | --- |")
    references = ("llama.cpp, Q4_1", "transformers generate(), bf16", "engine, frozen base")
    for name, speed in speeds.items():
        ratios = " | ".join(_ratio(speed, speeds[o]) if o in speeds else "-" for o in references)
        print(f"| {name} | {statistics.median(speed):.1f} | {ratios} |")
    print()


def _ratio(left: list[float], right: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(left, right, strict=True)):.2f}"


def decode_speed(engine: Engine, request: GenerationRequest | None = None) -> float:
    """Tokens per second after the first token of one greedy answer, by default of the frozen base."""
    *_, last = engine.submit(request or _request())
    assert last.stats is not None
    return last.stats.tokens_per_s


def generate_speed(base: Base) -> float:
    """Tokens per second of the same answer by transformers' generate()."""
    ids = torch.tensor([encode_prompt(base.tokenizer, STORY)], device=base.device)

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
        )
        return time.perf_counter() - start

    return (TOKENS - 1) / (seconds(TOKENS) - seconds(1))


def _request(
    adapter: str | None = None, store: AdapterStore | None = None, tokens: int = TOKENS
) -> GenerationRequest:
    visual = adapter is not None and store is not None and store.card(adapter).is_visual
    return GenerationRequest(
        STORY,
        adapter=adapter,
        image=open_image(PICTURE) if visual else None,
        sampling=SamplingParams(temperature=0, max_new_tokens=tokens),
    )


def _measure_batches(engine: Engine, store: AdapterStore) -> None:
    names: list[str | None] = [None, *store.names()]
    counts = (1, 4, 8, 16)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    idle: list[float] = []
    busy: list[float] = []
    question = GenerationRequest((Message("user", "How far away is the Moon, and how do we know?"),))
    for round_number in range(ROUNDS):
        for count in counts:
            answers = [engine.submit(_request(names[i % len(names)], store)) for i in range(count)]
            for answer in answers:
                next(answer)
            start = time.perf_counter()
            tokens = sum(sum(event.token_id is not None for event in answer) for answer in answers)
            rates[count].append(tokens / (time.perf_counter() - start))
        idle.append(first_token(engine, question, round_number))
        answers = [engine.submit(_request(names[i % len(names)], store, 256)) for i in range(8)]
        for answer in answers:
            next(answer)
        busy.append(first_token(engine, question, round_number + ROUNDS))
        for answer in answers:
            answer.close()
    print(f"| rows, of {len(names)} adapters | tokens/s in all | against one row |")
    print("| --- | --- | --- |")
    for count, rate in rates.items():
        print(f"| {count} | {statistics.median(rate):.1f} | {_ratio(rate, rates[1])} |")
    print(
        f"\nfirst token: idle {1000 * statistics.median(idle):.0f} ms, beside 8 busy rows "
        f"{1000 * statistics.median(busy):.0f} ms, ratio {_ratio(busy, idle)}\n"
    )


def first_token(engine: Engine, request: GenerationRequest, number: int = 0) -> float:
    """Seconds from the request to its first token; `number` makes the prompt new to the prefix cache."""
    messages = (*request.messages[:-1], Message("user", f"{number}. {request.messages[-1].text}"))
    start = time.perf_counter()
    request = GenerationRequest(
        messages, adapter=request.adapter, sampling=SamplingParams(temperature=0, max_new_tokens=1)
    )
    list(engine.submit(request))
    return time.perf_counter() - start


def _measure_swaps(engine: Engine, store: AdapterStore) -> None:
    print("| adapter | swap cold, ms: read, check, project | swap warm, ms: prompts of a row |")
    print("| --- | --- | --- |")
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
        print(f"| {name} | {1000 * statistics.median(cold):.1f} | {1000 * statistics.median(warm):.1f} |")
