"""Training beside PEFT's AdaptionPrompt and LoRA and full fine-tuning: one base in bf16, the same rows, one run.

Each way lives in a process of its own, so that its peak memory is its own, and works when it is told to: the ways
take turns. Figures are medians over the rounds, ratios medians of the rounds' ratios. "Useful" tokens are those
that are no padding. This module stays light: what measures imports what it needs in its own process.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROUNDS = 3
BATCH, LENGTH, STEPS = 8, 256, 2  # of the fixed shape; steps in a turn
ROWS, MEAN, SPREAD, SHORTEST, LONGEST = 128, 101, 0.55, 20, 400  # of the mixed lengths, in tokens
PEER_STEPS = 6  # of 8 rows drawn from those; ours takes the 16 batches of them all
FULL_PAD = 512  # tokens to which the official loader pads every row
IGNORED = -100
OURS, PROMPT, LORA, FULL = "this trainer", "PEFT AdaptionPrompt", "PEFT LoRA, r 8", "full fine-tuning"
FLOOR, PADDED = "matrix products alone", f"{PROMPT}, padded to {FULL_PAD}"

Turn = Callable[[int], tuple[float, int]]  # number of the round, -1 to warm up -> seconds, useful tokens


def run() -> None:
    seconds, _ = _table("fixed", (OURS, PROMPT, LORA, FULL, FLOOR), f"{BATCH} x {LENGTH}, half supervised")
    ours, floor = (statistics.median(s / STEPS for s in seconds[way]) for way in (OURS, FLOOR))
    above = statistics.median(a / b for a, b in zip(seconds[OURS], seconds[FLOOR], strict=True))
    print(
        f"\nfloor, the products of a frozen base forward and backward and the head on supervised positions: "
        f"{floor:.2f} s a step; this trainer {ours:.2f} s, {above:.2f} times that\n"
    )
    mixed = f"{SHORTEST} to {LONGEST} tokens, mean {MEAN}; peers under Trainer"
    _table("mixed", (OURS, PROMPT, LORA, FULL, PADDED), mixed)


def _table(table: str, ways: Iterable[str], title: str) -> tuple[dict[str, list[float]], dict[str, float]]:
    workers = {way: Worker(table, way) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in workers}
    rates: dict[str, list[float]] = {way: [] for way in workers}
    peaks: dict[str, float] = {}
    for number in range(ROUNDS):
        for way, worker in workers.items():
            took, tokens, peaks[way] = worker.turn(number)
            seconds[way].append(took)
            rates[way].append(tokens / took)
    for worker in workers.values():
        worker.close()
    print(
        f"| {title} | useful tokens/s | this trainer against it | peak memory, MB | this trainer's share of it |"
    )
    print("| --- | --- | --- | --- | --- |")
    for way, rate in rates.items():
        speedup = statistics.median(a / b for a, b in zip(rates[OURS], rate, strict=True))
        print(
            f"| {way} | {statistics.median(rate):.0f} | {speedup:.2f} | "
            f"{peaks[way]:.0f} | {peaks[OURS] / peaks[way]:.2f} |"
        )
    return seconds, peaks


class Worker:
    """One way of training in a process of its own, loaded and warm, waiting for its turns."""

    def __init__(self, table: str, way: str) -> None:
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.training", table, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.turn(-1)

    def turn(self, number: int) -> tuple[float, int, float]:
        """Seconds, useful tokens, and the peak memory so far in MB."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args[-2:]} of the bench died; its error stands above.")  # type: ignore[index]
        took, tokens, peak = json.loads(answer)
        return took, tokens, peak

    def close(self) -> None:
        self._process.communicate()


def _serve(table: str, way: str) -> None:
    from transformers.utils.logging import disable_progress_bar

    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - Trainer prints as it likes
    disable_progress_bar()
    turn = (fixed_turn if table == "fixed" else mixed_turn)(way)
    for line in sys.stdin:
        result = turn(int(line))
        gc.collect()
        if sys.platform == "linux":  # the ways wait side by side: what is free is the others' to use
            ctypes.CDLL(None).malloc_trim(0)
        print(json.dumps([*result, _peak_memory()]), file=answers, flush=True)


def _peak_memory() -> float:
    """MB of this process at its largest."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child begins at what its parent had
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# Ours: what `python -m train` does in a step.


def our_steps(base: Any, adapter: Any, optimizer: Any, batches: Iterable[Any]) -> int:
    """Train on `batches`; their useful tokens."""
    from train.loop import supervised_loss

    tokens = 0
    for batch in batches:
        supervised_loss(base.model, adapter, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        tokens += batch.tokens
    return tokens


def _ours() -> tuple[Any, Any, Any]:
    import torch

    from adapter.base.embedded import BASE
    from train.config import TrainConfig
    from train.loop import new_adapter
    from train.precision import load_to_train

    base = load_to_train(BASE, "bf16")
    adapter = new_adapter(TrainConfig("bench", "", steps=1), base)
    return base, adapter, torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)


def _peer(way: str) -> Any:
    """The base as transformers loads it, made trainable in the peer's way."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from adapter.base.embedded import base_folder

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base_folder(), dtype=torch.bfloat16).train()
    model.config.use_cache = False
    if way.startswith(PROMPT):
        layers = model.config.num_hidden_layers
        settings: Any = peft.AdaptionPromptConfig(adapter_len=10, adapter_layers=layers, task_type="CAUSAL_LM")
    elif way == LORA:
        settings = peft.LoraConfig(r=8, task_type="CAUSAL_LM")
    else:
        return model
    return peft.get_peft_model(model, settings)


# The fixed shape: bare steps.


def fixed_turn(way: str) -> Turn:
    """STEPS steps on one batch of BATCH x LENGTH random tokens, the second half of each row supervised."""
    import torch

    ids = torch.randint(49_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : LENGTH // 2] = IGNORED
    if way == OURS:
        from train.data import Example, Row, collate

        base, adapter, optimizer = _ours()
        rows = [
            Row(row.tolist(), learnt.tolist(), Example((), "")) for row, learnt in zip(ids, labels, strict=True)
        ]
        batch = collate(rows, 0)

        def steps() -> None:
            our_steps(base, adapter, optimizer, [batch] * STEPS)
    elif way == FLOOR:
        steps = _floor(int((labels[:, 1:] != IGNORED).sum()))
    else:
        model = _peer(way)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)

        def steps() -> None:
            for _ in range(STEPS):
                model(input_ids=ids, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    def turn(number: int) -> tuple[float, int]:
        start = time.perf_counter()
        steps()
        return time.perf_counter() - start, STEPS * BATCH * LENGTH

    return turn


def _floor(supervised: int) -> Callable[[], None]:
    """Every product that a step of a frozen base cannot do without, by itself, in bf16."""
    import torch

    from adapter.base.llama import load_base

    model = load_base(quantization="none").model
    weights = [m.weight for layer in model.model.layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    products = [(BATCH * LENGTH, weight) for weight in weights] + [(supervised, model.lm_head.weight)]
    inputs = {(n, size): torch.randn(n, size).bfloat16() for n, w in products for size in w.shape}

    @torch.no_grad()
    def steps() -> None:
        for _ in range(STEPS):
            for count, weight in products:
                outputs, width = weight.shape
                torch.mm(inputs[count, width], weight.T)
                torch.mm(inputs[count, outputs], weight)

    return steps


# Mixed lengths: whole trainers.


def mixed_turn(way: str) -> Turn:
    """Ours: all ROWS rows once. Peers: PEER_STEPS random batches of them by transformers' Trainer."""
    from transformers import AutoTokenizer

    from adapter.base.embedded import base_folder
    from train.data import Batches, Tokeniser, collate

    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    examples = _examples(tokenizer)
    tokeniser = Tokeniser(tokenizer, "raw", FULL_PAD)
    rows = tokeniser.rows(examples)  # shortest first
    if way != OURS:
        return _trainer_turn(way, tokenizer, [{"input_ids": row.ids, "labels": row.labels} for row in rows])
    base, adapter, optimizer = _ours()
    source = iter(Batches(itertools.cycle(examples), tokeniser, BATCH, seed=0))

    def turn(number: int) -> tuple[float, int]:
        start = time.perf_counter()
        chunks = [rows[-BATCH:]] if number < 0 else itertools.islice(source, ROWS // BATCH)
        tokens = our_steps(base, adapter, optimizer, (collate(chunk, tokeniser.pad) for chunk in chunks))
        return time.perf_counter() - start, tokens

    return turn


def _trainer_turn(way: str, tokenizer: Any, rows: list[dict[str, list[int]]]) -> Turn:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    padding = {"padding": "max_length", "max_length": FULL_PAD} if way == PADDED else {"padding": True}
    trainer = Trainer(
        model=_peer(way),
        args=TrainingArguments(
            output_dir=tempfile.gettempdir(),  # into which nothing is written
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=1e-4,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, **padding),
        train_dataset=rows,  # type: ignore[arg-type]
    )

    def turn(number: int) -> tuple[float, int]:
        # The longest rows first, so that peak memory is that of an epoch's worst batch.
        count = PEER_STEPS // (3 if way == PADDED else 1)
        chosen = rows[-BATCH:] if number < 0 else random.Random(number).sample(rows, count * BATCH)
        trainer.train_dataset = chosen
        start = time.perf_counter()
        trainer.train()
        tokens = sum(len(row["input_ids"]) for row in chosen)
        return time.perf_counter() - start, tokens

    return turn


def _examples(tokenizer: Any) -> list[Any]:
    """ROWS pieces of English prose, their lengths log-normal as Alpaca's are, half of each the answer."""
    import sklearn.datasets

    from adapter.base.template import Message
    from train.data import Example

    pages = sorted((Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))
    ids = 2 * tokenizer("\n".join(page.read_text() for page in pages), verbose=False).input_ids
    normal = statistics.NormalDist(math.log(MEAN) - SPREAD**2 / 2, SPREAD)
    lengths = [round(math.exp(normal.inv_cdf((i + 0.5) / ROWS))) for i in range(ROWS)]
    random.Random(0).shuffle(lengths)
    starts = itertools.accumulate(lengths, initial=0)
    made = []
    for start, length in zip(starts, (min(max(n, SHORTEST), LONGEST) for n in lengths), strict=False):
        middle = start + length // 2
        question, answer = tokenizer.decode(ids[start:middle]), tokenizer.decode(ids[middle : start + length - 1])
        made.append(Example((Message("user", question),), answer))
    return made


if __name__ == "__main__":
    _serve(*sys.argv[1:])
