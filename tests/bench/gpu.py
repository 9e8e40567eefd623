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
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adapter.base import memory
from adapter.base.llama import Base, load_base
from adapter.errors import first_line
from adapter.method.adapter import Adapter
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from tests.bench.programs import Program, Task, decode_speed, measure_in_turn, median, print_head, print_row, ratio
from tests.tiny_models import random_adapter, seven_billion_config, write_random_base
from train.config import TrainConfig
from train.input.batches import collate
from train.input.examples import Example
from train.input.rows import IGNORED, TokenisedRow
from train.loop import new_adapter, supervised_loss
from train.precision import load_to_train

QUANTIZATIONS = ("none", "nf4")
ROWS = (1, 8, 16)
SHORT, LONG = 24, 72  # tokens of an answer, see decode_speed
QUESTION = 32  # tokens
READ = (512, 1024)  # tokens, of prompts that are read
BATCH, LENGTH, STEPS, ROUNDS = 8, 256, 4, 3  # of training
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
        self._on_gpu, self.megabytes = device.startswith("cuda"), math.nan

    def __enter__(self) -> _Peak:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self.megabytes = torch.cuda.max_memory_allocated() / 2**20


# Serving.


class _EndlessBase(Base):
    """A base without end tokens: all answers have the length that was asked for."""

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset()


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


class _EngineProgram:
    def __init__(self, engine: Engine, device: str) -> None:
        self._engine, self._device, self.peak = engine, device, 0.0

    def run(self, task: Task) -> tuple[float, int]:
        sampling = SamplingParams(temperature=0, max_new_tokens=task.tokens)
        requests = [
            GenerationRequest(adapter=adapter or None, prompt_ids=tuple(prompt), sampling=sampling)
            for prompt, adapter in zip(task.prompts, task.adapters, strict=True)
        ]
        with _Peak(self._device) as peak:
            start = time.perf_counter()
            answers = [self._engine.submit(request) for request in requests]
            ends = [list(answer)[-1] for answer in answers]
            seconds = time.perf_counter() - start
        self.peak = max(peak.megabytes, self.peak)
        return seconds, sum(end.stats.new_tokens for end in ends if end.stats is not None)


class _GenerateProgram:
    def __init__(self, base: Base) -> None:
        self._base = base

    def run(self, task: Task) -> tuple[float, int]:
        start = time.perf_counter()
        ids = torch.tensor(task.prompts, device=self._base.device)
        length = {"min_new_tokens": task.tokens, "max_new_tokens": task.tokens}
        found = self._base.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **length
        ).tolist()
        return time.perf_counter() - start, sum(map(len, found)) - ids.numel()


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
    with closing(Engine(_EndlessBase(**vars(base)), _RandomAdapters(base), cache_bytes=cache)) as engine:
        make = _Tasks(base.fingerprint.vocab_size)
        ours, peer = _EngineProgram(engine, device), _GenerateProgram(base)
        for rows in ROWS:

            def decoding(program: Program, rows: int = rows) -> float:
                return decode_speed(program, lambda tokens: [make(rows, QUESTION, tokens)], SHORT, LONG)

            _print_serving(quantization, f"{rows} rows" if rows > 1 else "1 row", ours, peer, decoding)
        for length in READ:
            if length + 1 > base.context_length:
                continue

            def reading(program: Program, length: int = length) -> float:
                seconds, _ = program.run(make(1, length, 1))
                return length / seconds

            _print_serving(quantization, f"reading {length:,} tokens", ours, peer, reading)


def _print_serving(
    quantization: str, label: str, ours: _EngineProgram, peer: Program, measure: Callable[[Program], float]
) -> None:
    ours.peak = 0.0
    speeds = measure_in_turn({"ours": partial(measure, ours), "peer": partial(measure, peer)})
    against = ratio(speeds["ours"], speeds["peer"])
    print_row(quantization, label, *(median(s) for s in speeds.values()), against, median([ours.peak], 0))


# Training.


def _measure_training(name: str, device: str, quantization: str) -> None:
    rates: dict[str, float] = {}
    for method, start in (("PEFT AdaptionPrompt", _peft_steps), ("this trainer", _our_steps)):
        rate, peak = math.nan, _Peak(device)
        try:
            with peak:
                steps = start(name, device, quantization)
                rate = _training_rate(steps, device)
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            print(f"without {method} in {quantization}: {first_line(error)}", file=sys.stderr)
        steps = None  # type: ignore[assignment]  # it holds the weights
        _free(device)
        rates[method] = rate
        against = rate / rates["PEFT AdaptionPrompt"]
        print_row(quantization, method, median([rate], 0), median([against], 2), median([peak.megabytes], 0))


def _training_rate(steps: Steps, device: str) -> float:
    """Tokens per second."""
    seconds = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        steps()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return STEPS * BATCH * LENGTH / statistics.median(seconds[1:])


def _tokens(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Random ids and labels, [BATCH, LENGTH]; the second half of each row is supervised."""
    ids = torch.randint(vocabulary, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : LENGTH // 2] = IGNORED
    return ids, labels


def _our_steps(name: str, device: str, quantization: str) -> Steps:
    base = load_to_train(name, "nf4" if quantization == "nf4" else "bf16", device)
    adapter = new_adapter(TrainConfig("bench", "", steps=1), base).to(base.device)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)
    rows = [
        TokenisedRow(ids.tolist(), labels.tolist(), Example((), ""))
        for ids, labels in zip(*_tokens(base.fingerprint.vocab_size), strict=True)
    ]
    batch = collate(rows, 0).to(base.device)

    def steps() -> None:
        for _ in range(STEPS):
            supervised_loss(base.model, adapter, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def _peft_steps(name: str, device: str, quantization: str) -> Steps:
    import peft
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=torch.bfloat16,
        device_map={"": device},
        quantization_config=nf4 if quantization == "nf4" else None,
    ).train()
    model.config.use_cache = False
    layers = model.config.num_hidden_layers
    settings = peft.AdaptionPromptConfig(adapter_len=10, adapter_layers=layers, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, settings)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
    ids, labels = (part.to(device) for part in _tokens(model.config.vocab_size))

    def steps() -> None:
        for _ in range(STEPS):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps
