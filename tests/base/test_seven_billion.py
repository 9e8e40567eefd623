"""A base of 7B shape, made of random numbers, in a process whose memory is limited: `make huge` runs it.

It takes 14 GB of disk and 9 GB of memory. SEVEN_BILLION_LAYERS is the number of its layers: 32 make a LLaMA-7B,
and 1 proves the mechanism in half a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

LAYERS = int(os.environ.get("SEVEN_BILLION_LAYERS", "0"))
ROOM = 1.15  # of the packed size, for the whole process: Python and its libraries are in it
RUNTIME = 600_000_000  # what Python and the libraries take; it counts for little beside 32 layers
ADAPTERS = ("one", "two", "three", "four")
SLOT = 128  # tokens that the KV cache holds of each of four rows
TOKENS = 6  # that are read of an answer
pytestmark = pytest.mark.skipif(not LAYERS, reason="takes 14 GB of disk and minutes: make huge")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The base on disk in bfloat16, in files of 2 GB."""
    from tests.tiny_models import seven_billion_config, write_random_base

    folder = tmp_path_factory.mktemp("seven-billion")
    write_random_base(folder, seven_billion_config(LAYERS))
    yield folder
    shutil.rmtree(folder)  # pytest would keep it


@pytest.fixture(scope="module")
def figures(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the process below reports of loading and serving the base."""
    from adapter.base.llama import base_fingerprint
    from adapter.method.checkpoint import save_adapter
    from tests.tiny_models import random_adapter

    adapters = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(ADAPTERS):
        layers = min(LAYERS, 30)
        adapter = random_adapter(
            base_fingerprint(str(folder)), seed, 1.0, insertion_layers=layers, prompt_length=10
        )
        save_adapter(adapter, adapters / name)
    command = [sys.executable, "-m", "tests.base.test_seven_billion", str(folder), str(adapters)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin cost much beside other programs
    process = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=3000, env=environment, check=False
    )
    assert process.returncode == 0
    found = json.loads(process.stdout.splitlines()[-1])
    print("\n".join(f"{name}: {value}" for name, value in found.items()))
    return found


def test_it_loads_within_its_own_size(figures):
    assert figures["quantization"] == "packed-int8"
    assert figures["peak_bytes"] <= figures["limit_bytes"]
    if LAYERS == 32:
        assert figures["limit_bytes"] <= ROOM * figures["packed_bytes"]
        assert 6.8e9 < figures["packed_bytes"] < 7.0e9


def test_four_rows_with_different_adapters_get_what_they_get_alone(figures):
    together, alone = figures["together"], figures["alone"]
    assert len(together) == len(ADAPTERS) and together == alone
    assert len({str(answer) for answer in together}) == len(ADAPTERS), "the adapters differ"


def test_what_never_fits_the_cache_is_refused_with_a_sentence(figures):
    assert f"this server has memory for {len(ADAPTERS) * SLOT}" in figures["refusal"]


def test_a_fifth_row_waits_for_its_turn(figures):
    assert figures["waited"][-1]  # the others may wait for a moment, until the row before them has left
    assert figures["fifth"] == figures["alone"][0]


# The limited process.


class PeakMemory:
    """The largest amount of memory of one kind that this process has while the block runs, by sampling."""

    def __init__(self, kind: str) -> None:
        self.bytes = 0
        self._kind = kind
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, memory_of(self._kind))


def memory_of(kind: str) -> int:
    """A line of /proc/self/status in bytes: VmData, RssAnon, RssFile or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{kind}:")))


def main(folder: str, adapters: str) -> None:
    """Load and serve under RLIMIT_DATA, which the system enforces: an allocation above it fails."""
    import resource

    from adapter.base import memory
    from adapter.base.llama import base_config, load_base
    from adapter.errors import AdapterError
    from adapter.serve.engine import Engine
    from adapter.serve.request import Answer, GenerationRequest
    from adapter.serve.sampling import SamplingParams
    from adapter.serve.store import AdapterStore

    config = base_config(folder)
    packed = memory.needs(config)["packed"].bytes
    limit = int(ROOM * packed) + (0 if LAYERS == 32 else RUNTIME)
    cache = len(ADAPTERS) * SLOT * memory.kv_bytes_per_token(config, torch.bfloat16) * 4 // 3
    # What `require` asks room for beside the base is the cache of a conversation, which this test makes smaller.
    memory.require = lambda *_: None  # type: ignore[assignment]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    before = memory_of("RssAnon")
    begin = time.perf_counter()
    with PeakMemory("RssAnon") as peak:
        base = load_base(folder, device="cpu")
    seconds = time.perf_counter() - begin
    found: dict[str, object] = {
        "quantization": base.quantization,
        "packed_bytes": base.memory_bytes,
        "limit_bytes": limit,
        "before_bytes": before,
        "peak_bytes": peak.bytes,
        "peak_of_data_segments": memory_of("VmData"),
        "peak_with_mapped_files": memory_of("VmHWM"),
        "ratio": peak.bytes / base.memory_bytes,
        "load_seconds": seconds,
    }
    resource.setrlimit(resource.RLIMIT_DATA, (limit + cache + RUNTIME, resource.RLIM_INFINITY))

    def ask(adapter: str, prompt: int = 20, answer: int = SLOT - 20) -> Answer:
        ids = tuple(40 + i % 50 for i in range(prompt))
        sampling = SamplingParams(temperature=0, max_new_tokens=answer)
        return engine.submit(GenerationRequest(prompt_ids=ids, adapter=adapter, sampling=sampling))

    def read(answer: Answer) -> tuple[list[tuple], bool, float]:
        """The first tokens and their log-probabilities, whether the row waited, and tokens per second.

        Then the answer is cancelled.
        """
        tokens, waited, times = [], False, []
        for event in answer:
            waited |= event.position is not None
            if event.token_id is not None:
                tokens.append((event.token_id, event.logprob))
                times.append(time.perf_counter())
            if len(tokens) == TOKENS:
                break
        answer.cancel()
        return tokens, waited, (len(tokens) - 1) / (times[-1] - times[0])

    with closing(Engine(base, AdapterStore(Path(adapters)), cache_bytes=cache)) as engine:
        alone = [read(ask(name)) for name in ADAPTERS]
        answers = [ask(name) for name in (*ADAPTERS, ADAPTERS[0])]
        with ThreadPoolExecutor(len(answers)) as readers:
            *together, fifth = readers.map(read, answers)
        try:
            ask("one", prompt=len(ADAPTERS) * SLOT, answer=1)
        except AdapterError as error:
            found["refusal"] = str(error)
    found |= {
        "alone": [tokens for tokens, _, _ in alone],
        "together": [tokens for tokens, _, _ in together],
        "fifth": fifth[0],
        "waited": [waited for _, waited, _ in (*together, fifth)],
        "one_row_tokens_per_s": statistics.median(speed for _, _, speed in alone),
        "four_rows_tokens_per_s": sum(speed for _, _, speed in together),
        "threads": torch.get_num_threads(),
        "peak_serving": memory_of("VmHWM"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
