"""The precision that "auto" chooses to train in, by what the processor says of itself."""

from __future__ import annotations

import pytest
import torch

from train.precision import choose_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "has, limits, chosen, reason",
    [
        ({"avx512_bf16": True}, {}, "bf16", "avx512_bf16"),
        ({"amx_bf16": True, "avx512_bf16": True}, {}, "bf16", "amx_bf16"),
        ({"bf16": True}, {"ATEN_CPU_CAPABILITY": "default"}, "bf16", "bf16"),
        ({"avx512_vnni": True, "avx512_bf16": False}, {}, "fp32", "no bf16"),
        ({"avx512_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "fp32", "ONEDNN_MAX_CPU_ISA"),
        ({"avx512_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "bf16", "avx512_bf16"),
        ({"avx512_bf16": True}, {"ATEN_CPU_CAPABILITY": "avx2"}, "fp32", "ATEN_CPU_CAPABILITY"),
        ({"avx512_bf16": True}, {"ATEN_CPU_CAPABILITY": "avx512"}, "bf16", "avx512_bf16"),
    ],
)
def test_bf16_is_chosen_where_the_processor_multiplies_it(monkeypatch, has, limits, chosen, reason):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    precision, why = choose_precision("auto", CPU)
    assert precision == chosen and reason in why


@pytest.mark.parametrize("native, chosen", [(True, "bf16"), (False, "fp32")])
def test_a_gpu_says_itself_whether_it_has_bf16(monkeypatch, native, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    precision, why = choose_precision("auto", torch.device("cuda"))
    assert precision == chosen and "Card" in why


def test_what_was_asked_for_stays(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert choose_precision("bf16", CPU) == ("bf16", "as asked")
