"""Serving and training on a GPU, unquantised and in nf4, beside generate() and PEFT's AdaptionPrompt.

The base is BENCH_BASE, a folder or a name on the Hub, else random numbers in the shape of LLaMA-7B, which take
14 GB of disk meanwhile. In serving both programs run the same weights and are measured in turn in each round; the
rows of the engine have four adapters, those of transformers' generate() have none. In training one program after
the other is loaded, so that its peak memory is its own. Figures are medians over the rounds, ratios medians of the
rounds' ratios.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig

from adapter.base import memory
from adapter.base.llama import Base, load_base
from adapter.errors import first_line
from adapter.method.adapter import Adapter
from adapter.serve.engine import Engine
from tests.bench.engine import EndlessBase, greedy_requests, run_generate, run_rows
from tests.bench.programs import (
    Run,
    Task,
    decode_speed,
    measure_in_turn,
    median,
    print_head,
    print_row,
    ratio,
    timed,
)
from tests.bench.training import (
    BATCH,
    LENGTH,
    OURS,
    PROMPT,
    batch_of,
    load_peer,
    our_step,
    peer_step,
    random_tokens,
)
from tests.tiny_models import random_adapter, seven_billion_config, write_random_base
from train.precision import load_to_train

QUANTIZATIONS = ("none", "nf4")
ROWS = (1, 8, 16)
SHORT, LONG = 24, 72  # tokens of an answer, see decode_speed
QUESTION = 32  # tokens
READ = (512, 1024)  # tokens, of prompts that are read
STEPS, ROUNDS = 4, 3  # of training
ADAPTERS = ("one", "two", "three", "four")
SERVING_HEAD = ("weights", "task", "engine, tokens/s", "generate(), tokens/s", "ratio", "peak of the engine, MB")
TRAINING_HEAD = ("weights", f"training {BATCH} x {LENGTH}", "tokens/s", "against PEFT", "peak, MB")

Steps = Callable[[], None]


def run() -> None:
    if not torch.cuda.is_available():
        print("There is no CUDA device here: the tables stay empty.")
        print_head(*SERVING_HEAD)
        print_head(*TRAINING_HEAD)
    elif name := os.environ.get("BENCH_BASE"):
        measure(name, "cuda")
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_random_base(Path(folder), seven_billion_config())
            measure(folder, "cuda")


def measure(name: str, device: str) -> None:
    """Measures the base `name`. On a CPU, with a small base, it shows that this program works."""
    print_head(*SERVING_HEAD)
    for quantization in QUANTIZATIONS:
        _measure_serving(name, device, quantization)
        _free(device)
    print_head(*TRAINING_HEAD)
    for quantization in QUANTIZATIONS:
        _measure_training(name, device, quantization)


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


class _Peak:
    """The most memory of a GPU, in MB, that was in use while `with` was left to this; nan on a CPU."""

    def __init__(self, device: str) -> None:
        self._on_gpu, self.megabytes = device.startswith("cuda"), 0.0 if device.startswith("cuda") else math.nan

    def __enter__(self) -> _Peak:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self.megabytes = max(self.megabytes, torch.cuda.max_memory_allocated() / 2**20)


# Serving.


class _RandomAdapters:
    """The engine's store: adapters of random numbers for its base."""

    def __init__(self, base: Base) -> None:
        layers = min(base.fingerprint.num_hidden_layers, 30)
        self._adapters = {
            name: random_adapter(base.fingerprint, seed, insertion_layers=layers, prompt_length=10).to(base.device)
            for seed, name in enumerate(ADAPTERS)
        }

    def load(self, name: str, base: Base) -> Adapter:
        return self._adapters[name]


class _Tasks:
    """Makes tasks of random tokens, no two of which begin alike, so that no prefix cache knows them."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._generator = vocabulary, torch.Generator().manual_seed(0)

    def __call__(self, rows: int, prompt: int, tokens: int) -> Task:
        ids = torch.randint(self._vocabulary, (rows, prompt), generator=self._generator).tolist()
        adapters = [name for name, _ in zip(itertools.cycle(ADAPTERS), range(rows), strict=False)]
        return Task([""] * rows, ids, tokens, adapters)


def _measure_serving(name: str, device: str, quantization: str) -> None:
    base = load_base(name, quantization, device)
    room = max(ROWS) * (QUESTION + LONG + 64) + max(READ)  # a slot is a multiple of 64 tokens, and one more prompt
    # The default takes a third of what is free, and then the peak would be that of the machine.
    cache = 2 * room * memory.kv_bytes_per_token(base.model.config, base.model.dtype)
    with closing(Engine(EndlessBase(**vars(base)), _RandomAdapters(base), cache_bytes=cache)) as engine:
        make = _Tasks(base.fingerprint.vocab_size)

        def ours(task: Task, peak: _Peak) -> tuple[float, int]:
            with peak:
                return run_rows(engine.submit, greedy_requests(task))

        def compare(label: str, measure: Callable[[Run], float]) -> None:
            peak = _Peak(device)
            runs = {"ours": partial(ours, peak=peak), "peer": partial(run_generate, base)}
            speeds = measure_in_turn({name: partial(measure, run) for name, run in runs.items()})
            figures = [*(median(s) for s in speeds.values()), ratio(*speeds.values())]
            print_row(quantization, label, *figures, median([peak.megabytes], 0))

        for rows in ROWS:

            def decoding(run: Run, rows: int = rows) -> float:
                return decode_speed(run, lambda tokens: [make(rows, QUESTION, tokens)], SHORT, LONG)

            compare(f"{rows} rows" if rows > 1 else "1 row", decoding)
        for length in READ:
            if length + 1 > base.context_length:
                continue

            def reading(run: Run, length: int = length) -> float:
                return length / run(make(1, length, 1))[0]

            compare(f"reading {length:,} tokens", reading)


# Training.


def _measure_training(name: str, device: str, quantization: str) -> None:
    rates: dict[str, float] = {}
    for method, start in ((PROMPT, _peft_steps), (OURS, _our_steps)):
        rate, peak = math.nan, _Peak(device)
        try:
            with peak:
                rate = _training_rate(start(name, device, quantization), device)
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            print(f"without {method} in {quantization}: {first_line(error)}", file=sys.stderr)
        _free(device)
        rates[method] = rate
        against = rate / rates[PROMPT]
        print_row(quantization, method, median([rate], 0), median([against], 2), median([peak.megabytes], 0))


def _training_rate(steps: Steps, device: str) -> float:
    """Tokens per second."""

    def all_steps() -> None:
        for _ in range(STEPS):
            steps()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    seconds = [timed(all_steps) for _ in range(1 + ROUNDS)]
    return STEPS * BATCH * LENGTH / statistics.median(seconds[1:])


def _our_steps(name: str, device: str, quantization: str) -> Steps:
    base = load_to_train(name, "nf4" if quantization == "nf4" else "bf16", device)
    return partial(our_step(base), batch_of(*random_tokens(base.fingerprint.vocab_size)).to(base.device))


def _peft_steps(name: str, device: str, quantization: str) -> Steps:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    packing = {"quantization_config": nf4} if quantization == "nf4" else {}
    model = load_peer(PROMPT, name, dtype=torch.bfloat16, device_map={"": device}, **packing)
    return partial(peer_step(model), *(part.to(device) for part in random_tokens(model.config.vocab_size)))
