"""A base of 7B shape, made of random numbers, in a process whose memory is limited: `make huge` runs it.

It takes 14 GB of disk and 9 GB of memory. SEVEN_BILLION_LAYERS is the number of its layers: 32 make a LLaMA-7B,
and 1 proves the mechanism in half a minute. Limits follow from the size of the format.
"""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch

LAYERS = int(os.environ.get("SEVEN_BILLION_LAYERS", "0"))
ROOM = 1.15  # of the packed size, for the whole process: Python and its libraries are in it
RUNTIME = 600_000_000  # what Python and the libraries take; it counts for little beside 32 layers
SLOT = 128  # tokens that the KV cache holds of each of four rows
TOKENS, LONG = 6, 24  # that are read of an answer, and of the one whose speed is measured


@pytest.mark.skipif(not LAYERS, reason="takes 14 GB of disk and minutes: make huge")
def test_it_loads_and_serves_within_the_size_of_its_format(tmp_path):
    from adapter.base.llama import base_fingerprint
    from adapter.method.checkpoint import save_adapter
    from tests.tiny_models import random_adapter, seven_billion_config, write_random_base

    folder = tmp_path / "base"
    try:
        write_random_base(folder, seven_billion_config(LAYERS))
        fingerprint = base_fingerprint(str(folder))
        for seed in range(4):
            adapter = random_adapter(fingerprint, seed, 1.0, insertion_layers=min(LAYERS, 30), prompt_length=10)
            save_adapter(adapter, tmp_path / "adapters" / str(seed))
        for format in ("packed-int4", "packed-int8"):
            command = [sys.executable, "-m", "tests.base.test_seven_billion", str(folder)]
            assert subprocess.run([*command, str(tmp_path / "adapters"), format], timeout=3000).returncode == 0
    finally:
        shutil.rmtree(folder)  # pytest would keep it


def memory_speed() -> float:
    """Bytes a second that all cores read together."""
    data = torch.ones(2**27)
    data.sum()
    began = time.perf_counter()
    for _ in range(4):
        data.sum()
    return 4 * data.nbytes / (time.perf_counter() - began)


def main(folder: str, adapters: str, format: str) -> None:
    """Load and serve under RLIMIT_DATA, above which the system allocates nothing; rows get together what alone."""
    import resource

    from adapter.base import memory
    from adapter.base.llama import base_config, load_base
    from adapter.serve import engine as engine_module
    from adapter.serve.request import Answer, GenerationRequest, SamplingParams
    from adapter.serve.store import AdapterStore

    config = base_config(folder)
    packed = memory.needs(config)[format].bytes
    unpacked = 2 * config.vocab_size * config.hidden_size  # the embedding in bfloat16, while it is packed
    limit = int(ROOM * packed) + (0 if LAYERS == 32 else RUNTIME + unpacked)
    cache = 4 * SLOT * memory.kv_bytes_per_token(config, torch.bfloat16) * 4 // 3
    # What `require` asks room for beside the base is the cache of a conversation, which this test makes smaller.
    memory.require = lambda *_: None
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    began = time.perf_counter()
    base = load_base(folder, format, "cpu")
    print(f"loaded in {time.perf_counter() - began:.0f} s: {base.describe()}")
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    print(f"peak: {peak / base.memory_bytes:.2f} of its size")
    assert base.quantization == format
    assert base.memory_bytes == pytest.approx(packed, rel=0.01)
    resource.setrlimit(resource.RLIMIT_DATA, (limit + cache + RUNTIME, resource.RLIM_INFINITY))

    def read(answer: Answer) -> list[tuple]:
        return [(event.token_id, event.logprob) for event in answer if event.token_id is not None]

    engine_module._draft = lambda row, rows: []  # such answers go in circles
    ids, sampling = tuple(range(40, 60)), SamplingParams(temperature=0, max_new_tokens=TOKENS)
    requests = [GenerationRequest(prompt_ids=ids, adapter=str(n), sampling=sampling) for n in range(4)]
    with closing(engine_module.Engine(base, AdapterStore(Path(adapters)), cache_bytes=cache)) as engine:
        alone = [read(engine.submit(request)) for request in requests]
        answers = [engine.submit(request) for request in requests]
        with ThreadPoolExecutor(len(answers)) as readers:
            together = list(readers.map(read, answers))
        speeds = [memory_speed()]
        long = GenerationRequest(prompt_ids=ids, sampling=SamplingParams(temperature=0, max_new_tokens=LONG))
        stats = list(engine.submit(long))[-1].stats
        speeds.append(memory_speed())
    assert stats is not None
    table = base.model.model.embed_tokens
    most = max(speeds) / (base.memory_bytes - sum(t.nbytes for t in [*table.parameters(), *table.buffers()]))
    print(f"{stats.tokens_per_s:.2f} tokens/s; memory of {max(speeds) / 1e9:.0f} GB/s allows {most:.2f}")
    assert stats.tokens_per_s > 0.5 * most
    assert together == alone
    assert len({str(tokens) for tokens in alone}) == 4, "the adapters differ"


if __name__ == "__main__":
    main(*sys.argv[1:])
