"""The embedded base in every quantisation on this machine's CPU: speed, memory, and perplexity against fp32.

Speed is greedy decoding of one row by the engine, measured in turn, medians over the rounds. Perplexity is that of
English prose (scikit-learn's descriptions of its bundled data sets), read by the forward pass that serves.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from adapter.base.llama import Base, load_base
from adapter.base.threads import set_threads
from adapter.method.attention import PromptKV
from adapter.serve.forward import make_forward
from adapter.serve.kv_cache import KVCache, Slot
from tests.bench.engine import start_engine
from tests.bench.programs import decode_speed, measure_in_turn, median, print_head, print_row, ratio
from tests.bench.serving import STORY, Tasks

FORMATS = ("auto", "none", "nf4", "int8")
TOKENS = 48
WINDOW, WINDOWS = 512, 12  # tokens of a window


def run() -> None:
    tasks = Tasks()
    engines = {name: start_engine(quantization=name) for name in FORMATS}
    story = partial(tasks, [STORY])
    speeds = measure_in_turn(
        {
            name: partial(decode_speed, engine.run, lambda tokens: [story(tokens)], 1, TOKENS)
            for name, engine in engines.items()
        }
    )
    for engine in engines.values():
        engine.close()
    exact = perplexity(load_base(quantization="none", device="cpu", dtype=torch.float32), prose())
    print_head("quantization", "decoding, tokens/s", "against none", "memory, MB", "perplexity", "against fp32, %")
    print_row("fp32", "", "", "", f"{exact:.2f}", "")
    for name in FORMATS:
        base = load_base(quantization=name, device="cpu")
        found = perplexity(base, prose())
        speed = [median(speeds[name]), ratio(speeds[name], speeds["none"])]
        difference = f"{100 * (found / exact - 1):+.2f}"
        print_row(base.quantization, *speed, round(base.memory_bytes / 2**20), f"{found:.2f}", difference)


def prose() -> str:
    """English: scikit-learn's descriptions of its bundled data sets."""
    files = sorted((Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))
    return "\n".join(file.read_text() for file in files)


def perplexity(base: Base, text: str, adapter: PromptKV | None = None) -> float:
    """exp of the mean loss over the first windows of the text."""
    found = [F.cross_entropy(logits[:-1], following) for logits, following in read(base, text, WINDOWS, adapter)]
    return torch.stack(found).mean().exp().item()


@torch.inference_mode()
def read(base: Base, text: str, windows: int, adapter: PromptKV | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Of the text's first windows the logits, [T, vocab_size], and the tokens behind the first, [T - 1]."""
    ids = base.tokenizer(text, verbose=False).input_ids[: windows * WINDOW]
    forward, cache = make_forward(base, set_threads(base.model.config)), KVCache(base, WINDOW)
    prompts = forward.stack([forward.prepare(adapter)])
    for start in range(0, len(ids), WINDOW):
        window = ids[start : start + WINDOW]
        yield forward(cache, [window], [Slot(0, WINDOW)], [0], prompts, every=True), torch.tensor(window[1:])
    forward.close()
