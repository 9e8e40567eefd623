"""Training beside PEFT's AdaptionPrompt and LoRA and full fine-tuning: one base, the same rows.

Every method trains in bf16 and in fp32, each in a process of its own, so that its peak memory can be measured.
All are measured in turn in each round; where a method is clearly slower in one precision than in the other, that
one is measured in the first round only. Figures are medians over the rounds, ratios medians of the rounds' ratios.
"Useful" tokens are those that are not padding.
"""

import ctypes
import gc
import itertools
import math
import random
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from adapter.base.embedded import BASE, base_folder
from adapter.base.llama import Base, load_base, load_tokenizer
from adapter.base.template import Message
from tests.bench.programs import ProgramProcess, median, print_head, print_row, ratio, timed
from train.config import TrainConfig
from train.input.batches import Batch, Batches, collate
from train.input.examples import Example
from train.input.rows import IGNORED, TokenisedRow, Tokeniser
from train.loop import new_adapter, total_loss
from train.precision import choose_precision, load_to_train

ROUNDS = 3
BATCH, LENGTH, STEPS = 8, 256, 2  # of the fixed shape; steps in a round
ROWS, MEAN, SPREAD, SHORTEST, LONGEST = 128, 101, 0.55, 20, 400  # of the mixed lengths, in tokens
PEER_STEPS = 6  # batches of 8 random rows; whoever groups rows by length takes all 16 batches
FULL_PAD = 512  # tokens to which the official loader pads every row
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
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
    workers = {row: ProgramProcess("tests.bench.training", table, *row) for row in rows}
    for worker in workers.values():
        worker.ask(-1)
    rates: dict[tuple[str, str], list[float]] = {row: [] for row in workers}
    peaks: dict[tuple[str, str], float] = {}
    for number in range(ROUNDS):
        for row, worker in list(workers.items()):
            took, tokens, peaks[row] = worker.ask(number)
            rates[row].append(tokens / took)
        for method in methods if number == 0 else ():
            slow = min(PRECISIONS, key=lambda precision: rates[method, precision][0])
            if CLEARLY_SLOWER * rates[method, slow][0] < max(rates[method, p][0] for p in PRECISIONS):
                workers.pop((method, slow)).close()
    for worker in workers.values():
        worker.close()
    # What a method reaches in each round, in the better precision.
    best = {m: max((rates[m, p] for p in PRECISIONS if (m, p) in workers), key=statistics.median) for m in methods}
    chosen, reason = choose_precision("auto", torch.device("cpu"))
    automatic = rates[OURS, chosen]
    print_head(title, "precision", "useful tokens/s", "this trainer against it", "peak memory, MB")
    for row, rate in rates.items():
        print_row(*row, median(rate, 0), ratio(automatic, rate), f"{peaks[row]:.0f}")
    share = median([statistics.median(automatic) / statistics.median(best[OURS])], 2)
    print(f"\nauto is {chosen} ({reason}): {share} of this trainer's fastest precision")
    for method in [m for m in (GROUPED, PROMPT, LORA, FULL) if m in best]:
        print(f"auto against the best precision of {method}: {ratio(automatic, best[method])}")


def start(table: str, method: str, precision: str) -> Callable[[int], tuple[float, int, float]]:
    """What the process of a method answers the number of a round by: seconds, useful tokens, its peak in MB."""
    disable_progress_bar()
    measure = (fixed_turn if table == "fixed" else mixed_turn)(method, precision)

    def answer(number: int) -> tuple[float, int, float]:
        seconds, tokens = measure(number)
        gc.collect()
        if sys.platform == "linux":  # memory that this process has freed is for the others
            ctypes.CDLL(None).malloc_trim(0)
        return seconds, tokens, _peak_memory()

    return answer


def _peak_memory() -> float:
    """MB, of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child begins at what its parent had
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# Steps: what `python -m train` does in one, and what a peer does.


def our_step(base: Base) -> Callable[[Batch], None]:
    adapter = new_adapter(TrainConfig("bench", "", steps=1), base).to(base.device)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)

    def step(batch: Batch) -> None:
        (total_loss(base.model, adapter, batch) / max(batch.supervised, 1)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peer_step(model: Any) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)

    def step(ids: Tensor, labels: Tensor) -> None:
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_tokens(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Ids and labels, [BATCH, LENGTH]; the second half of each row is supervised."""
    ids = torch.randint(vocabulary, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : LENGTH // 2] = IGNORED
    return ids, labels


def batch_of(ids: Tensor, labels: Tensor) -> Batch:
    rows = zip(ids.tolist(), labels.tolist(), strict=True)
    return collate([TokenisedRow(row, targets, Example((), "")) for row, targets in rows])


def load_peer(method: str, name: str | Path, **options: Any) -> Any:
    """A base as transformers loads it with these options, made trainable by the method of a peer."""
    import peft  # here, as its memory is not this trainer's

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(name, **options).train()
    model.config.use_cache = False
    if method == FULL:
        return model
    layers = model.config.num_hidden_layers
    settings: Any = peft.LoraConfig(r=8, task_type="CAUSAL_LM")
    if method != LORA:
        settings = peft.AdaptionPromptConfig(adapter_len=10, adapter_layers=layers, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, settings)


# The fixed shape: bare steps.


def fixed_turn(method: str, precision: str) -> Measure:
    """STEPS steps on one batch of BATCH x LENGTH random tokens, the second half of each row supervised."""
    ids, labels = random_tokens(49_000)
    if method == OURS:
        base = load_to_train(BASE, precision, "cpu")  # type: ignore[arg-type]
        step: Callable[[], None] = partial(our_step(base), batch_of(ids, labels))
    elif method == FLOOR:
        step = _floor(int((labels[:, 1:] != IGNORED).sum()), PRECISIONS[precision])
    else:
        step = partial(peer_step(load_peer(method, base_folder(), dtype=PRECISIONS[precision])), ids, labels)

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return lambda number: (timed(steps), STEPS * BATCH * LENGTH)


def _floor(supervised: int, dtype: torch.dtype) -> Callable[[], None]:
    """torch's matrix products alone that a step on a frozen base cannot do without."""
    model = load_base(quantization="none", device="cpu", dtype=dtype).model
    weights = [m.weight for layer in model.model.layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    products = [(BATCH * LENGTH, weight) for weight in weights] + [(supervised, model.lm_head.weight)]
    inputs = {(n, size): torch.randn(n, size, dtype=weights[0].dtype) for n, w in products for size in w.shape}

    @torch.no_grad()
    def step() -> None:
        for count, weight in products:
            outputs, width = weight.shape
            torch.mm(inputs[count, width], weight.T)
            torch.mm(inputs[count, outputs], weight)

    return step


# Mixed lengths: whole trainers.


def mixed_turn(method: str, precision: str) -> Measure:
    """As many rows as ROWS where they are grouped by length; else PEER_STEPS random batches of them.

    Peers train by transformers' Trainer: in the order of lengths, which pads least, or a random one, its default.
    """
    tokenizer = load_tokenizer()
    examples = _examples(tokenizer)
    tokeniser = Tokeniser(tokenizer, "raw", FULL_PAD)
    rows = tokeniser.rows(examples)  # shortest first
    if method != OURS:
        peer = load_peer(method, base_folder(), dtype=PRECISIONS[precision])
        values = [{"input_ids": row.ids, "labels": row.labels} for row in rows]
        return _trainer_turn(peer, method, tokenizer, values)
    step = our_step(load_to_train(BASE, precision, "cpu"))  # type: ignore[arg-type]
    source = iter(Batches(itertools.cycle(examples), tokeniser, BATCH, seed=0))

    def measure(number: int) -> tuple[float, int]:
        trained: list[int] = []

        def steps() -> None:
            for chunk in [rows[-BATCH:]] if number < 0 else itertools.islice(source, ROWS // BATCH):
                batch = collate(chunk)
                step(batch)
                trained.append(batch.tokens)

        return timed(steps), sum(trained)

    return measure


def _trainer_turn(model: Any, method: str, tokenizer: Any, rows: list[dict[str, list[int]]]) -> Measure:
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    padding = {"padding": "max_length", "max_length": FULL_PAD} if method == PADDED else {"padding": True}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=tempfile.gettempdir(),  # into which nothing is written
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            train_sampling_strategy="sequential" if method == GROUPED else "random",
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
    trainer.remove_callback(PrinterCallback)

    def measure(number: int) -> tuple[float, int]:
        # The longest rows first, so that peak memory is that of an epoch's worst batch.
        count = PEER_STEPS // 3 if method == PADDED else PEER_STEPS
        chosen = rows if method == GROUPED else random.Random(number).sample(rows, count * BATCH)
        trainer.train_dataset = chosen = rows[-BATCH:] if number < 0 else chosen
        return timed(trainer.train), sum(len(row["input_ids"]) for row in chosen)

    return measure


def _examples(tokenizer: Any) -> list[Example]:
    """ROWS pieces of English prose, their lengths log-normal as Alpaca's are, half of each the answer."""
    from tests.bench.base import prose

    ids = 2 * tokenizer(prose(), verbose=False).input_ids
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
