"""What serving does differently on each kind of device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CPU_CHUNK, _CUDA_CHUNK = 64, 512


def prefill_chunk(device: torch.device) -> int:
    """How many prompt tokens are read between two decode steps of the other rows.

    As many as the device reads in about the time of a few decode steps: a GPU has work for all its cores from
    some hundreds of tokens on, and then reads them hardly slower than one.
    """
    return _CUDA_CHUNK if device.type == "cuda" else _CPU_CHUNK


def to_device(values: Sequence[object], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor on `device`.

    `torch.tensor(values, device="cuda")` waits until the GPU has done all its work; a copy from pinned memory is
    queued behind it.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
