"""This project's engine, and transformers' generate(), each alone in a process: what serving is measured by."""

import atexit
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from adapter.base.image_file import open_image
from adapter.base.llama import Base, load_base
from adapter.serve import engine as engine_module
from adapter.serve.engine import Engine
from adapter.serve.form import NO_FORM
from adapter.serve.request import Answer, GenerationEvent, GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.bench.programs import ProgramProcess, Run, Task, timed

PICTURE = Path(sysconfig.get_path("purelib")) / "skimage/data/coffee.png"


def start_engine(endless: bool = False, quantization: str = "auto") -> ProgramProcess:
    """endless: the base has no end token, so that every answer has as many tokens as were asked for.

    It makes no drafts then: behind its end an answer goes in circles, which nobody else would guess as well. It
    has no forms either, which need an end token.
    """
    return ProgramProcess("tests.bench.engine", "endless" if endless else "engine", quantization)


def start_generate() -> ProgramProcess:
    """transformers' generate() on the unquantised base; it takes one prompt and knows no end token."""
    return ProgramProcess("tests.bench.engine", "generate", "none")


class EndlessBase(Base):
    """A base without end tokens."""

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset()


def greedy_requests(task: Task) -> list[GenerationRequest]:
    sampling = SamplingParams(temperature=0, max_new_tokens=task.tokens)
    return [
        GenerationRequest(adapter=adapter or None, prompt_ids=tuple(prompt), sampling=sampling)
        for prompt, adapter in zip(task.prompts, task.adapters, strict=True)
    ]


def run_rows(
    submit: Callable[[GenerationRequest], Answer], requests: Iterable[GenerationRequest]
) -> tuple[float, int]:
    """As Run."""
    ends: list[GenerationEvent] = []
    seconds = timed(lambda: ends.extend([*answer][-1] for answer in [submit(request) for request in requests]))
    return seconds, sum(end.stats.new_tokens for end in ends if end.stats is not None)


def run_generate(base: Base, task: Task) -> tuple[float, int]:
    """As Run. The prompts are of one length."""
    ids = torch.tensor([list(prompt) for prompt in task.prompts], device=base.device)
    length = {"min_new_tokens": task.tokens, "max_new_tokens": task.tokens}
    seconds = timed(
        lambda: base.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **length
        ).cpu()
    )
    return seconds, task.tokens * len(ids)


def start(kind: str, quantization: str) -> Run:
    """What the process answers tasks by."""
    base = load_base(quantization=quantization)
    if kind == "generate":
        return lambda task: run_generate(base, task)
    store, endless = AdapterStore(), kind == "endless"
    if endless:
        engine_module._draft = lambda row, rows: []
    engine = Engine(EndlessBase(**vars(base)) if endless else base, store)
    atexit.register(engine.close)
    picture, form = open_image(PICTURE), NO_FORM if endless else None

    def run(task: Task) -> tuple[float, int]:
        shown = [picture if name and store.card(name).config.is_visual else None for name in task.adapters]
        requests = zip(greedy_requests(task), shown, strict=True)
        return run_rows(engine.submit, [replace(each, image=image, form=form) for each, image in requests])

    return run
