"""Chooses the precision of the frozen base in training, and loads the base in it."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from adapter.base import memory
from adapter.base.frozen_linear import freeze_linears
from adapter.base.llama import Base, load_base
from train.config import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Values of ONEDNN_MAX_CPU_ISA that leave its bf16 products on: from AVX512_CORE_BF16 upwards.
_ISA_WITH_BF16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")


def processor_fields() -> dict[str, str]:
    """What Linux tells of the last core, such as "model name" and "flags"; nothing on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor_name() -> str:
    """What the system calls this machine's processor."""
    return processor_fields().get("model name") or platform.processor() or platform.machine()


def choose_precision(precision: Precision, device: torch.device) -> tuple[Precision, str]:
    """The precision that "auto" means on `device`, and why; another one as it is.

    What `accelerate launch` asks for; else bf16 where the hardware multiplies it (emulated, a step takes two to
    four times as long as in fp32), fp16 on GPUs with tensor cores for it alone (V100, T4), and fp32 elsewhere.
    """
    if precision != "auto":
        return precision, "as asked"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched in ("bf16", "fp16"):
        return cast(Precision, launched), "as accelerate was asked for"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{name} multiplies it"
        tensor_cores = torch.cuda.get_device_capability(device) >= (7, 0)
        return ("fp16" if tensor_cores else "fp32"), f"{name} has no bf16"
    has = _cpu_capabilities()  # Arm's name is plain "bf16"
    units = [unit for unit in ("amx_bf16", "avx512_bf16", "bf16") if has.get(unit)]
    if not units:
        return "fp32", "this processor has no bf16 products"
    if not torch.backends.mkldnn.is_available():
        return "fp32", "this build of torch lacks oneDNN, whose bf16 products are the fast ones"
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    if not any(part in isa.upper() for part in _ISA_WITH_BF16):
        return "fp32", f"ONEDNN_MAX_CPU_ISA={isa} switches bf16 products off"
    return "bf16", f"this processor multiplies it ({units[0]})"


def _cpu_capabilities() -> Mapping[str, Any]:
    """What the processor can do, by torch's names; releases of torch before this query know only x86's bf16."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    avx512_bf16, amx = torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()
    return {"avx512_bf16": avx512_bf16, "amx_bf16": amx}


def load_to_train(name: str, precision: Precision, device: str) -> Base:
    """Loads the base for training. precision: any but "auto". Raises LoadError."""
    dtype = DTYPES.get(precision) or memory.half_precision(device)  # of what nf4 and int8 leave unquantised
    quantization = precision if precision in ("nf4", "int8") else "none"
    base = load_base(name, quantization=quantization, device=device, dtype=dtype)
    for module in base.model.modules():
        # Else bitsandbytes packs weights for a CPU when it first sees an input without a gradient, and the packed
        # product passes no gradient on: it would be lost from then on, without a word.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if base.device.type != "cpu":
        return base
    # glibc keeps what a step frees for the next one: fetching these pages anew takes a twentieth of its time.
    trim_threshold, mmap_threshold = -1, -3  # of mallopt
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)
    if quantization == "none" and freeze_linears(base.model):
        for parameter in base.model.parameters():  # else what is left keeps the whole mapped file in memory
            parameter.data = parameter.data.clone()
    return base
