"""What a base needs is what it takes, and one that surely does not fit is refused before it is loaded."""

import pytest
import torch
from transformers import LlamaConfig

from adapter.base import llama, memory
from adapter.base.llama import load_base
from adapter.base.memory import needs
from adapter.errors import LoadError
from tests.tiny_models import write_random_base

LLAMA_7B = LlamaConfig(intermediate_size=11008, dtype=torch.bfloat16)
GIGA = 10**9


@pytest.mark.parametrize("quantization", ["none", "nf4", "packed-int8", "packed-int4"])
@pytest.mark.parametrize("biases", [(), ("attention_bias",), ("attention_bias", "mlp_bias")])
def test_the_computed_need_is_the_memory_of_the_loaded_base(quantization, biases, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= dict.fromkeys(biases, True)
    config = LlamaConfig(**sizes, vocab_size=500, dtype=torch.bfloat16, eos_token_id=None, bos_token_id=None)
    write_random_base(tmp_path, config)
    base = load_base(str(tmp_path), quantization, device="cpu")
    # bitsandbytes keeps its scales outside of what torch counts.
    assert needs(config)[quantization.replace("none", "bf16")].bytes == pytest.approx(base.memory_bytes, rel=0.12)


def test_a_base_must_leave_room_for_one_conversation():
    need = needs(LLAMA_7B)["packed-int8"]
    assert need.cache == 2048 * memory.kv_bytes_per_token(LLAMA_7B, torch.bfloat16) == 2048 * 2 * 32 * 4096 * 2
    assert need.fits(need.bytes + need.cache) and not need.fits(need.bytes + GIGA)


def test_load_base_refuses_before_it_loads(monkeypatch, tiny_folder):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(llama, "_load_packed", lambda *_: pytest.fail("loaded"))
    with pytest.raises(LoadError, match=f"'{tiny_folder.name}' does not fit into memory"):
        load_base(str(tiny_folder))
    with pytest.raises(LoadError, match=r"fp32 \d+ .*Choose a smaller precision"):
        load_base(str(tiny_folder), quantization="none", dtype=torch.float32)


ROOMY = needs(LLAMA_7B)["bf16"].bytes + 4 * needs(LLAMA_7B)["bf16"].cache


def test_free_memory_decides_what_auto_loads(monkeypatch):
    """And what others have quantised, and other devices, are left alone."""
    for free, chosen in ((ROOMY, "none"), (ROOMY - 1, "nf4")):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        assert memory.choose_quantization(LLAMA_7B, "cuda", torch.bfloat16)[0] == chosen
    quantized = LlamaConfig(quantization_config={"quant_method": "gptq"})
    assert memory.choose_quantization(quantized, "cuda", torch.bfloat16)[0] == "none"
    assert memory.choose_quantization(LLAMA_7B, "mps", torch.bfloat16)[0] == "none"
    eight, four = (needs(LLAMA_7B)[f"packed-int{bits}"] for bits in (8, 4))
    roomy = eight.bytes + 4 * eight.cache
    for free, chosen, other in ((roomy, "packed-int8", four), (roomy - 1, "packed-int4", eight)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        found, why = memory.choose_quantization(LLAMA_7B, "cpu", torch.bfloat16)
        assert found == chosen and f"{(other.bytes + 4 * other.cache) / 1e9:.1f} GB" in why


def test_control_groups_bound_the_memory(tmp_path, monkeypatch):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    for folder, limit, high in (("user", "max", 6 * GIGA), ("user/job", 4 * GIGA, "max")):
        (root / folder).mkdir(parents=True)
        (root / folder / "memory.max").write_text(str(limit))
        (root / folder / "memory.high").write_text(str(high))
        (root / folder / "memory.current").write_text(str(3 * GIGA))
        stat = f"active_file {2 * GIGA}\ninactive_file {GIGA}\nfile_mapped {GIGA}\n"
        (root / folder / "memory.stat").write_text(stat)
    own.write_text("0::/user/job\n5:cpu,memory:/docker\n")
    assert list(memory._group_limits(root=root, own=own)) == [(4 * GIGA, GIGA), (6 * GIGA, GIGA)]
    assert list(memory._group_limits(root=root, own=tmp_path / "none")) == []
    monkeypatch.setattr(memory, "_group_limits", lambda: [(5, 3), (9, 3)])
    assert memory.free_bytes("cpu") == 2
