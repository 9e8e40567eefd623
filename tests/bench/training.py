"""Training beside PEFT's AdaptionPrompt and LoRA and full fine-tuning: one base, the same rows.

Every method trains in bf16 and in fp32, each in a process of its own, so that its peak memory can be measured.
All are measured in turn in each round; where a method is clearly slower in one precision than in the other, that
one is measured in the first round only. Figures are medians over the rounds, ratios medians of the rounds' ratios.
"Useful" tokens are those that are not padding. Heavy imports are made in the processes that measure.
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

from adapter.base.threads import sleep_when_idle

ROUNDS = 3
BATCH, LENGTH, STEPS = 8, 256, 2  # of the fixed shape; steps in a round
ROWS, MEAN, SPREAD, SHORTEST, LONGEST = 128, 101, 0.55, 20, 400  # of the mixed lengths, in tokens
PEER_STEPS = 6  # batches of 8 random rows; whoever groups rows by length takes all 16 batches
FULL_PAD = 512  # tokens to which the official loader pads every row
IGNORED = -100
PRECISIONS = ("bf16", "fp32")
CLEARLY_SLOWER = 1.3  # times as long in the first round
OURS, PROMPT, LORA, FULL = "this trainer", "PEFT AdaptionPrompt", "PEFT LoRA, r 8", "full fine-tuning"
FLOOR, PADDED = "matrix products alone", f"{PROMPT}, padded to {FULL_PAD}"
GROUPED = f"{PROMPT}, grouped by length"

Measure = Callable[[int], tuple[float, int]]  # round, -1 to warm up -> seconds, useful tokens


def run() -> None:
    _table("fixed", (OURS, PROMPT, LORA, FULL, FLOOR), f"{BATCH} x {LENGTH}, half supervised")
    mixed = f"{SHORTEST} to {LONGEST} tokens, mean {MEAN}; peers under transformers' Trainer"
    _table("mixed", (OURS, GROUPED, PROMPT, LORA, FULL, PADDED), mixed)


def _table(table: str, methods: Iterable[str], title: str) -> None:
    rows = [(method, precision) for method in methods for precision in PRECISIONS]
    workers = {row: Worker(table, *row) for row in rows}
    rates: dict[tuple[str, str], list[float]] = {row: [] for row in workers}
    peaks: dict[tuple[str, str], float] = {}
    for number in range(ROUNDS):
        for row, worker in list(workers.items()):
            took, tokens, peaks[row] = worker.measure(number)
            rates[row].append(tokens / took)
        for method in methods if number == 0 else ():
            slow = min(PRECISIONS, key=lambda precision: rates[method, precision][0])
            if CLEARLY_SLOWER * rates[method, slow][0] < max(rates[method, p][0] for p in PRECISIONS):
                workers.pop((method, slow)).close()
    for worker in workers.values():
        worker.close()
    # What a method reaches in each round, in the better precision.
    best = {m: max((rates[m, p] for p in PRECISIONS if (m, p) in workers), key=statistics.median) for m in methods}
    chosen, reason = _automatic()
    automatic = statistics.median(rates[OURS, chosen]) / statistics.median(best[OURS])
    print(f"| {title} | precision | useful tokens/s | this trainer against it | peak memory, MB |")
    print("| --- | --- | --- | --- | --- |")
    for (method, precision), rate in rates.items():
        speedup = statistics.median(a / b for a, b in zip(rates[OURS, chosen], rate, strict=False))
        memory = peaks[method, precision]
        print(f"| {method} | {precision} | {statistics.median(rate):.0f} | {speedup:.2f} | {memory:.0f} |")
    print(f"\nauto is {chosen} ({reason}): {automatic:.2f} of this trainer's fastest precision")
    for method in [m for m in (GROUPED, PROMPT, LORA, FULL) if m in best]:
        speedup = statistics.median(a / b for a, b in zip(rates[OURS, chosen], best[method], strict=False))
        print(f"auto against the best precision of {method}: {speedup:.2f}")
    print()


def _automatic() -> tuple[str, str]:
    """The precision in which this trainer trains here, and why."""
    import torch

    from train.precision import choose_precision

    return choose_precision("auto", torch.device("cpu"))


class Worker:
    """One method in a process of its own, loaded and warmed up."""

    def __init__(self, table: str, method: str, precision: str) -> None:
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.method = method
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.training", table, method, precision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.measure(-1)

    def measure(self, number: int) -> tuple[float, int, float]:
        """Seconds, useful tokens, and the peak memory so far in MB."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process of {self.method} died; its error is printed above.")
        took, tokens, peak = json.loads(answer)
        return took, tokens, peak

    def close(self) -> None:
        self._process.communicate()


def _serve(table: str, method: str, precision: str) -> None:
    sleep_when_idle()  # as the trainer's threads do; the peers' too
    from transformers.utils.logging import disable_progress_bar

    results, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - Trainer prints as it likes
    disable_progress_bar()
    measure = (fixed_turn if table == "fixed" else mixed_turn)(method, precision)
    for line in sys.stdin:
        result = measure(int(line))
        gc.collect()
        if sys.platform == "linux":  # memory that this process has freed is for the others
            ctypes.CDLL(None).malloc_trim(0)
        print(json.dumps([*result, _peak_memory()]), file=results, flush=True)


def _peak_memory() -> float:
    """MB, of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child begins at what its parent had
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# This trainer: what `python -m train` does in a step.


def train_steps(base: Any, adapter: Any, optimizer: Any, batches: Iterable[Any]) -> int:
    """Trains on `batches`. Returns how many useful tokens they have."""
    from train.loop import supervised_loss

    tokens = 0
    for batch in batches:
        supervised_loss(base.model, adapter, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        tokens += batch.tokens
    return tokens


def _trainer(precision: Any) -> tuple[Any, Any, Any]:
    import torch

    from adapter.base.embedded import BASE
    from train.config import TrainConfig
    from train.loop import new_adapter
    from train.precision import load_to_train

    base = load_to_train(BASE, precision, "cpu")
    adapter = new_adapter(TrainConfig("bench", "", steps=1), base)
    return base, adapter, torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)


def _dtype(precision: str) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _peer(method: str, precision: str) -> Any:
    """The base as transformers loads it, made trainable by the method of a peer."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from adapter.base.embedded import base_folder

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base_folder(), dtype=_dtype(precision)).train()
    model.config.use_cache = False
    if method.startswith(PROMPT):
        layers = model.config.num_hidden_layers
        settings: Any = peft.AdaptionPromptConfig(adapter_len=10, adapter_layers=layers, task_type="CAUSAL_LM")
    elif method == LORA:
        settings = peft.LoraConfig(r=8, task_type="CAUSAL_LM")
    else:
        return model
    return peft.get_peft_model(model, settings)


# The fixed shape: bare steps.


def fixed_turn(method: str, precision: str) -> Measure:
    """STEPS steps on one batch of BATCH x LENGTH random tokens, the second half of each row supervised."""
    import torch

    ids = torch.randint(49_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : LENGTH // 2] = IGNORED
    if method == OURS:
        from train.input.batches import collate
        from train.input.examples import Example
        from train.input.rows import TokenisedRow

        base, adapter, optimizer = _trainer(precision)
        rows = [
            TokenisedRow(row.tolist(), targets.tolist(), Example((), ""))
            for row, targets in zip(ids, labels, strict=True)
        ]
        batch = collate(rows, 0)

        def steps() -> None:
            train_steps(base, adapter, optimizer, [batch] * STEPS)
    elif method == FLOOR:
        steps = _floor(int((labels[:, 1:] != IGNORED).sum()), _dtype(precision))
    else:
        model = _peer(method, precision)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)

        def steps() -> None:
            for _ in range(STEPS):
                model(input_ids=ids, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    def measure(number: int) -> tuple[float, int]:
        start = time.perf_counter()
        steps()
        return time.perf_counter() - start, STEPS * BATCH * LENGTH

    return measure


def _floor(supervised: int, dtype: Any) -> Callable[[], None]:
    """torch's matrix products alone that a step on a frozen base cannot do without."""
    import torch

    from adapter.base.llama import load_base

    model = load_base(quantization="none", device="cpu", dtype=dtype).model
    weights = [m.weight for layer in model.model.layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    products = [(BATCH * LENGTH, weight) for weight in weights] + [(supervised, model.lm_head.weight)]
    inputs = {(n, size): torch.randn(n, size, dtype=weights[0].dtype) for n, w in products for size in w.shape}

    @torch.no_grad()
    def steps() -> None:
        for _ in range(STEPS):
            for count, weight in products:
                outputs, width = weight.shape
                torch.mm(inputs[count, width], weight.T)
                torch.mm(inputs[count, outputs], weight)

    return steps


# Mixed lengths: whole trainers.


def mixed_turn(method: str, precision: str) -> Measure:
    """All ROWS rows once where they are grouped by length; else PEER_STEPS random batches of them.

    Peers train by transformers' Trainer: with its sampler that groups by length, or in random order, its default.
    """
    from transformers import AutoTokenizer

    from adapter.base.embedded import base_folder
    from train.input.batches import Batches, collate
    from train.input.rows import Tokeniser

    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    examples = _examples(tokenizer)
    tokeniser = Tokeniser(tokenizer, "raw", FULL_PAD)
    rows = tokeniser.rows(examples)  # shortest first
    if method != OURS:
        return _trainer_turn(
            _peer(method, precision),
            method,
            tokenizer,
            [{"input_ids": row.ids, "labels": row.labels} for row in rows],
        )
    base, adapter, optimizer = _trainer(precision)
    source = iter(Batches(itertools.cycle(examples), tokeniser, BATCH, seed=0))

    def measure(number: int) -> tuple[float, int]:
        start = time.perf_counter()
        chunks = [rows[-BATCH:]] if number < 0 else itertools.islice(source, ROWS // BATCH)
        tokens = train_steps(base, adapter, optimizer, (collate(chunk, tokeniser.pad) for chunk in chunks))
        return time.perf_counter() - start, tokens

    return measure


def _trainer_turn(model: Any, method: str, tokenizer: Any, rows: list[dict[str, list[int]]]) -> Measure:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    padding = {"padding": "max_length", "max_length": FULL_PAD} if method == PADDED else {"padding": True}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=tempfile.gettempdir(),  # into which nothing is written
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            train_sampling_strategy="group_by_length" if method == GROUPED else "random",
            learning_rate=1e-4,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, **padding),
        train_dataset=rows,
    )

    def measure(number: int) -> tuple[float, int]:
        # The longest rows first, so that peak memory is that of an epoch's worst batch.
        count = {GROUPED: ROWS // BATCH, PADDED: PEER_STEPS // 3}.get(method, PEER_STEPS)
        chosen = rows[-BATCH:] if number < 0 else random.Random(number).sample(rows, count * BATCH)
        trainer.train_dataset = chosen
        start = time.perf_counter()
        trainer.train()
        tokens = sum(len(row["input_ids"]) for row in chosen)
        return time.perf_counter() - start, tokens

    return measure


def _examples(tokenizer: Any) -> list[Any]:
    """ROWS pieces of English prose, their lengths log-normal as Alpaca's are, half of each the answer."""
    import sklearn.datasets

    from adapter.base.template import Message
    from train.input.examples import Example

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
