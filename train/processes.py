"""What the processes of a run do together. With one process, each function does its part alone."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from adapter.errors import AdapterError
from train.run_folder import TrainError

Result = TypeVar("Result")


def in_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """What `work` returns in the main process, in all processes; if it fails there, it fails in all of them."""
    result: Any = in_all(accelerator, lambda: work() if accelerator.is_main_process else None)
    return broadcast_object_list([result])[0]


def in_all(accelerator: Accelerator, work: Callable[[], Result], in_turn: bool = False) -> Result:
    """What `work` returns in this process; if it fails in one, it fails in all. in_turn: the first process of
    each machine goes first, and fetches and converts the base for the others there.
    """
    failure: Exception | None = None
    with accelerator.local_main_process_first() if in_turn else contextlib.nullcontext():
        try:
            result = work()
        except Exception as error:
            failure = error
    problem = None if failure is None else ("Its own error says why.", "")
    if isinstance(failure, AdapterError):
        problem = str(failure), failure.detail
    problems: list[tuple[str, str] | None] = gather_object([problem])
    if failure is not None:
        raise failure
    for process, problem in enumerate(problems):
        if problem is not None:
            raise TrainError(f"Process {process} of {len(problems)} has failed: {problem[0]}", problem[1])
    return result


def check_same(found: object) -> None:
    """Raises TrainError, in all processes, if `found` is not the same in all of them."""
    first, *others = gather_object([found])
    if any(other != first for other in others):
        raise TrainError(
            "The processes do not train the same run: their settings, base, data, precision or start_from differ. "
            "Give every machine the same files and settings."
        )


def summed(accelerator: Accelerator, figures: Tensor) -> Tensor:
    """The sum of all processes' figures, on the CPU."""
    if accelerator.num_processes == 1:
        return figures
    return accelerator.reduce(figures.to(accelerator.device), "sum").cpu()


def sum_gradients(accelerator: Accelerator, parameters: Sequence[torch.nn.Parameter], sums: Tensor) -> Tensor:
    """Sums gradients over processes, in place, a missing one as zero, and returns `sums`, summed too. One flat
    all-reduce: DDP has to be told of parameters without gradients, and a batch without images has such.
    """
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    if accelerator.num_processes > 1:
        flat = accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]), "sum")  # type: ignore[union-attr]
        for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = piece.view_as(p)
    return summed(accelerator, sums)
