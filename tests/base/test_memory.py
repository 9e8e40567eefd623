"""What a base needs is what it takes, and one that surely does not fit is refused before it is loaded."""

from __future__ import annotations

import psutil
import pytest
import torch
from transformers import LlamaConfig

from adapter.base import llama, memory
from adapter.base.llama import load_base
from adapter.base.memory import DeviceMemory, MemoryNeed, needs
from adapter.errors import LoadError
from tests.tiny_models import write_random_base

LLAMA_7B = LlamaConfig(intermediate_size=11008, dtype=torch.bfloat16)
GIGA = 10**9


@pytest.mark.parametrize(
    ("quantization", "kind"), [("none", "bf16"), ("int8", "int8"), ("nf4", "nf4"), ("auto", "packed")]
)
def test_the_computed_need_is_the_memory_of_the_loaded_base(quantization, kind, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=500, dtype=torch.bfloat16, eos_token_id=None, bos_token_id=None)
    write_random_base(tmp_path, config)
    base = load_base(str(tmp_path), quantization, device="cpu")
    # bitsandbytes keeps its scales outside of what torch counts.
    assert needs(config)[kind].bytes == pytest.approx(base.memory_bytes, rel=0.12)


@pytest.mark.parametrize(
    ("room", "mapped", "fits"),
    [
        (DeviceMemory(20, 5), True, True),  # mapped files count against the total, not against what is free
        (DeviceMemory(20, 5), False, False),
        (DeviceMemory(9, 9), True, False),
        (DeviceMemory(20, 5, allocatable=12), True, True),  # and against the limits of a process
        (DeviceMemory(20, 5, allocatable=11), True, False),
    ],
)
def test_what_fits(room, mapped, fits):
    assert room.holds(MemoryNeed(10, 8, 2), mapped) == fits


def test_a_base_must_leave_room_for_one_conversation():
    need = needs(LLAMA_7B)["packed"]
    assert need.cache == 2048 * memory.kv_bytes_per_token(LLAMA_7B, torch.bfloat16) == 2048 * 2 * 32 * 4096 * 2
    assert DeviceMemory(99 * GIGA, need.bytes + need.cache).holds(need, mapped=True)
    assert not DeviceMemory(99 * GIGA, need.bytes + GIGA).holds(need, mapped=True)
    short = LlamaConfig(intermediate_size=11008, dtype=torch.bfloat16, max_position_embeddings=512)
    assert needs(short)["packed"].cache == need.cache // 4, "no conversation is longer than the context"


def refused(monkeypatch, room, quantization, device="cpu", config=LLAMA_7B):
    monkeypatch.setattr(memory, "ram", lambda: room)
    monkeypatch.setattr(memory, "cuda", lambda _: room)
    with pytest.raises(LoadError) as caught:
        memory.require("llama-7b", config, quantization, device, torch.bfloat16)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_refusal_names_need_memory_and_alternatives(monkeypatch):
    said = refused(monkeypatch, DeviceMemory(8 * GIGA, 6 * GIGA), "none")
    for part in ("nf4 4.2 GB", "int8 7.0 GB", "packed 7.3 GB", "bf16 13.5 GB", "6.0 GB of memory are free"):
        assert part in said
    assert "its KV cache for one conversation of 2,048 tokens 1.1 GB more" in said
    assert "Load it as nf4, or end other programs." in said
    assert "Choose a smaller base" in refused(monkeypatch, DeviceMemory(2 * GIGA, GIGA), "packed")
    on_gpu = refused(monkeypatch, DeviceMemory(8 * GIGA, 6 * GIGA), "int8", "cuda:1")
    assert "memory on cuda:1" in on_gpu and "packed" not in on_gpu and "Load it as nf4," in on_gpu


def test_a_base_that_may_fit_is_not_refused(monkeypatch):
    monkeypatch.setattr(memory, "ram", lambda: DeviceMemory(16 * GIGA, 6 * GIGA))
    # Four bits may hold it exactly, and bf16 stays in its file.
    for quantization in ("packed", "none", "nf4"):
        memory.require("llama-7b", LLAMA_7B, quantization, "cpu", torch.bfloat16)
    monkeypatch.setattr(memory, "ram", lambda: DeviceMemory(1, 1))
    quantized = LlamaConfig(quantization_config={"quant_method": "gptq"})
    memory.require("by others", quantized, "none", "cpu", torch.bfloat16)


def test_load_base_refuses_before_it_loads(monkeypatch, tiny_folder):
    monkeypatch.setattr(memory, "ram", lambda: DeviceMemory(1000, 1000))
    monkeypatch.setattr(llama, "_load_packed", lambda *_: pytest.fail("loaded"))
    with pytest.raises(LoadError, match=f"'{tiny_folder.name}' does not fit into memory"):
        load_base(str(tiny_folder))


ROOMY = needs(LLAMA_7B)["bf16"].bytes + 4 * needs(LLAMA_7B)["bf16"].cache


@pytest.mark.parametrize(
    ("free", "bf16", "chosen", "dtype"),
    [
        (ROOMY, True, "none", torch.bfloat16),
        (ROOMY, False, "none", torch.float16),
        (ROOMY - 1, True, "nf4", torch.bfloat16),
        (ROOMY - 1, False, "nf4", torch.float16),
    ],
)
def test_free_memory_and_the_gpu_decide_what_auto_loads(monkeypatch, caplog, tmp_path, free, bf16, chosen, dtype):
    """Up to transformers' loader: no GPU is needed."""
    LLAMA_7B.save_pretrained(tmp_path)
    loaded = {}

    def load(cls, *_, **options):
        if cls is llama.AdaptedLlama:
            loaded.update(options)
            raise LoadError("far enough")
        return LLAMA_7B

    monkeypatch.setattr(llama, "_load", load)
    monkeypatch.setattr(llama, "_usable_device", lambda device: device)
    monkeypatch.setattr(memory, "cuda", lambda _: DeviceMemory(80 * GIGA, free))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    with caplog.at_level("INFO", "adapter"), pytest.raises(LoadError, match="far enough"):
        load_base(str(tmp_path), device="cuda:1")
    [line] = [record.getMessage() for record in caplog.records]
    bits = loaded["quantization_config"]
    if chosen == "nf4":
        assert bits.load_in_4bit and bits.bnb_4bit_compute_dtype == dtype
        assert "as nf4: 16 bits a weight and the KV caches of 4 conversations take 17.8 GB, and only" in line
    else:
        assert bits is None and f"as {dtype}: " in line
    assert loaded["dtype"] == dtype and "cuda:1" in line


def test_auto_leaves_what_others_have_quantised_and_unknown_devices_alone(monkeypatch):
    monkeypatch.setattr(memory, "cuda", lambda _: DeviceMemory(1, 1))
    quantized = LlamaConfig(quantization_config={"quant_method": "gptq"})
    assert memory.choose_quantization(quantized, "cuda", torch.bfloat16)[0] == "none"
    assert memory.choose_quantization(LLAMA_7B, "mps", torch.bfloat16)[0] == "none"
    assert memory.choose_quantization(LLAMA_7B, "cpu", torch.bfloat16)[0] == "packed"


def test_control_groups_bound_the_memory(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    for folder, limit in (("user", "max"), ("user/job", str(4 * GIGA))):
        (root / folder).mkdir(parents=True)
        (root / folder / "memory.max").write_text(limit)
        (root / folder / "memory.current").write_text(str(3 * GIGA))
        (root / folder / "memory.stat").write_text(f"anon 1\ninactive_file {2 * GIGA}\n")
    own.write_text("0::/user/job\n5:cpu,memory:/docker\n")
    assert list(memory._group_limits(root=root, own=own)) == [(4 * GIGA, GIGA)]
    assert list(memory._group_limits(root=root, own=tmp_path / "none")) == []


@pytest.mark.parametrize(("limit", "used"), [("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")])
def test_resource_limits_bound_the_memory(limit, used):
    resource = pytest.importorskip("resource")
    kind = getattr(resource, limit)
    taken = getattr(psutil.Process().memory_info(), used)
    before = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (taken + GIGA, before[1]))
        room = memory.ram()
    finally:
        resource.setrlimit(kind, before)
    assert room.free is not None and room.free == room.allocatable
    assert room.free == pytest.approx(GIGA, abs=GIGA // 5), "what is in use is not free"
