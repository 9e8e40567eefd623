"""Threads for the products of a base on a CPU. Can be imported before torch."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig

# How often an idle thread of libgomp looks for work before it sleeps. Its default, 300,000, makes the threads of a
# step spin against any other program on the cores: 16 rows then took seconds (docs/log.md).
_SPIN_COUNT = "2000"
_limit = 0  # torch's threads before the first call
_M_ARENA_MAX = -8  # of malloc.h
_PARAMETERS_PER_THREAD = 1_000_000  # of one layer: below that, handing out the work costs more than it saves


def sleep_when_idle() -> None:
    """Let idle threads sleep soon, unless the environment says otherwise. Call it before torch is imported."""
    if sys.platform == "linux" and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
        # Without this libgomp looks 100 times only once several threads have computed, as in the page's process,
        # and one row is a third slower; with it, 1,000 times.
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
        os.environ.setdefault("KMP_BLOCKTIME", "1")  # ms: Intel's runtime would take ACTIVE as for ever


def share_arenas() -> None:
    """Let all threads take memory from two of glibc's arenas. Call it before threads are started.

    By itself it has eight a core, and each keeps what its threads free: a besieged page held 420 MB, not 120.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system has other means
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def available_cores() -> int:
    """The number of cores that this process may use: its affinity, and the quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _control_group_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def set_threads(config: LlamaConfig) -> int:
    """Set torch's threads for a base from the cores and the size of one of its layers; returns their number.

    Once when serving begins, because torch's setting is global: each thread takes it over at its first product. A
    lower number that was set before the first call, for example by OMP_NUM_THREADS, is the upper limit.
    """
    import torch

    global _limit
    _limit = _limit or torch.get_num_threads()
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    parameters = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    threads = max(1, min(_limit, available_cores(), parameters // _PARAMETERS_PER_THREAD))
    torch.set_num_threads(threads)
    return threads


def _control_group_quota(**places: Path) -> float | None:
    """Cores that the control groups of this process let it use; None if there is no limit."""
    from adapter.base.memory import control_group_texts  # imports torch

    limits = (text.split() for (text,) in control_group_texts("cpu.max", **places))
    return min((int(quota) / int(period) for quota, period in limits if quota != "max"), default=None)
