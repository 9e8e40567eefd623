"""This project's engine, and transformers' generate(), each alone in a process: what serving is measured by."""

from __future__ import annotations

import sys
import sysconfig
import time
from pathlib import Path

from tests.bench.programs import ProgramProcess, Task, serve

PICTURE = Path(sysconfig.get_path("purelib")) / "skimage/data/coffee.png"


def start_engine(endless: bool = False, quantization: str = "auto") -> ProgramProcess:
    """endless: the base has no end token, so that every answer has as many tokens as were asked for.

    It makes no drafts then: behind its end an answer goes in circles, which nobody else would guess as well. It
    has no forms either, which need an end token.
    """
    return ProgramProcess("tests.bench.engine", "endless" if endless else "engine", quantization)


def start_generate() -> ProgramProcess:
    """transformers' generate() on the unquantised base; it takes one prompt and knows no end token."""
    return ProgramProcess("tests.bench.engine", "generate")


def _serve_engine(endless: bool, quantization: str) -> None:
    from adapter.base.image_file import open_image
    from adapter.base.llama import Base, load_base
    from adapter.serve import engine as engine_module
    from adapter.serve.engine import Engine
    from adapter.serve.form import NO_FORM
    from adapter.serve.request import GenerationRequest
    from adapter.serve.sampling import SamplingParams
    from adapter.serve.store import AdapterStore

    class BaseWithoutStop(Base):
        @property
        def stop_ids(self) -> frozenset[int]:
            return frozenset()

    if endless:
        engine_module._draft = lambda row, rows: []
    base = load_base(quantization=quantization)
    store = AdapterStore()
    engine = Engine(BaseWithoutStop(**vars(base)) if endless else base, store)
    picture = open_image(PICTURE)

    def request(prompt: list[int], adapter: str, tokens: int) -> GenerationRequest:
        return GenerationRequest(
            adapter=adapter or None,
            image=picture if adapter and store.card(adapter).is_visual else None,
            sampling=SamplingParams(temperature=0, max_new_tokens=tokens),
            prompt_ids=tuple(prompt),
            form=NO_FORM if endless else None,
        )

    def run(task: Task) -> tuple[float, int]:
        rows = zip(task.prompts, task.adapters, strict=True)
        requests = [request(list(prompt), adapter, task.tokens) for prompt, adapter in rows]
        start = time.perf_counter()
        answers = [engine.submit(each) for each in requests]
        ends = [list(answer)[-1] for answer in answers]
        seconds = time.perf_counter() - start
        return seconds, sum(end.stats.new_tokens for end in ends if end.stats is not None)

    serve(run)
    engine.close()


def _serve_generate() -> None:
    import torch

    from adapter.base.llama import load_base

    base = load_base(quantization="none")

    def run(task: Task) -> tuple[float, int]:
        ids = torch.tensor([list(task.prompts[0])])
        length = {"min_new_tokens": task.tokens, "max_new_tokens": task.tokens}
        start = time.perf_counter()
        base.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **length)
        return time.perf_counter() - start, task.tokens

    serve(run)


def main() -> None:
    from adapter.base.threads import sleep_when_idle

    sleep_when_idle()  # as in the page's program, before torch is imported
    if sys.argv[1] == "generate":
        _serve_generate()
    else:
        _serve_engine(sys.argv[1] == "endless", sys.argv[2])


if __name__ == "__main__":
    main()
