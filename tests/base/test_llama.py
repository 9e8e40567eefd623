"""The frozen base: what can be loaded, how it is quantised, and that a zero gate never changes it."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from adapter.base.llama import AdaptedLlama, load_base
from adapter.base.quantize import Int4Linear, Int8Linear, PackedLinear
from adapter.base.template import Message, encode_prompt
from adapter.errors import LoadError
from tests.tiny_models import random_adapter

PROMPT = (Message("user", "Name three colours."),)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["auto", "nf4", "int8", "none"])
@torch.no_grad()
def test_a_zero_gate_is_the_base_bit_for_bit_in_every_quantisation(quantization):
    base = load_base(quantization=quantization, device="cpu")
    adapter = random_adapter(base.fingerprint, insertion_layers=30, gate=0.2)
    kv = adapter(base.model)
    zero = kv.scaled(0.0)
    ids = torch.tensor([encode_prompt(base.tokenizer, PROMPT)])
    plain, gated = base.model(input_ids=ids), base.model(input_ids=ids, prompt_kv=zero)
    assert torch.equal(plain.logits, gated.logits)
    for _ in range(3):
        token = plain.logits[:, -1:].argmax(-1)
        plain = base.model(input_ids=token, cache=plain.cache)
        gated = base.model(input_ids=token, cache=gated.cache, prompt_kv=zero)
        assert torch.equal(plain.logits, gated.logits)
    changed = base.model(input_ids=ids, prompt_kv=kv).logits
    assert not torch.allclose(changed[:, -1], base.model(input_ids=ids).logits[:, -1], atol=0.5)


@pytest.mark.slow
def test_auto_reports_its_quantization_and_memory(base):
    assert base.quantization == ("nf4" if torch.cuda.is_available() else "packed-int4")
    assert isinstance(base.model.lm_head, PackedLinear) or torch.cuda.is_available()
    assert 120 < base.memory_bytes / 2**20 < 170
    assert base.quantization in base.describe() and "MB" in base.describe()
    assert base.context_length == 8192
    assert base.tokenizer.decode(sorted(base.stop_ids)) == "<|im_end|>"


@pytest.mark.slow
@torch.no_grad()
def test_the_packed_base_is_close_to_the_full_one(base):
    full = load_base(quantization="none", device="cpu")
    ids = torch.tensor([encode_prompt(base.tokenizer, PROMPT)])
    one, other = (b.model(input_ids=ids).logits[0].float().log_softmax(-1) for b in (base, full))
    divergence = (other.exp() * (other - one)).sum(-1).mean()  # nats; bitsandbytes' four bits are 1.5 away
    assert divergence < 0.03


def test_the_packed_product_and_its_gradient_are_those_of_the_weights():
    torch.manual_seed(0)
    weight = torch.randn(48, 64)
    linear = Int8Linear.pack(weight)
    unpacked = linear.unpacked().float()
    assert (unpacked - weight).abs().max() <= linear.scales.float().max()
    for rows in (1, 7, 100):
        x = torch.randn(rows, 64).bfloat16()
        assert_close(linear(x).float(), x.float() @ unpacked.T, rtol=2e-2, atol=0.2)
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    linear(x).sum().backward()
    assert_close(x.grad.float(), unpacked.sum(0).expand(3, -1), rtol=2e-2, atol=0.2)


def four_bit_weight(rows, columns):
    """A weight as a GGUF file in Q4_1 holds it: sixteen steps between the ends of each group of 32."""
    groups = torch.randn(rows, columns // 32, 32)
    low, high = groups.aminmax(dim=2, keepdim=True)
    step = ((high - low) / 15).half().float()
    return (((groups - low) / step).round() * step + low.half()).view(rows, columns)


def test_int4_packs_only_weights_that_it_holds_exactly():
    torch.manual_seed(0)
    weight = four_bit_weight(128, 96)
    linear = Int4Linear.pack(weight.bfloat16())
    assert linear.weight.numel() * 2 == weight.numel()
    assert (linear.unpacked().float() - weight).abs().max() < 0.03
    x = torch.randn(70, 96).bfloat16()
    assert_close(linear(x).float(), x.float() @ weight.T, rtol=2e-2, atol=0.3)
    assert torch.equal(linear(x)[3:4], linear(x[3:4]))
    x.requires_grad_(True)
    linear(x).sum().backward()
    assert_close(x.grad.float(), weight.sum(0).expand(70, -1), rtol=2e-2, atol=0.5)
    assert Int4Linear.pack(torch.randn(128, 96)) is None
    assert Int4Linear.pack(four_bit_weight(48, 96)) is None  # no whole block of outputs


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
def test_a_concatenated_layer_equals_its_parts_and_shares_their_memory(kind):
    parts = [kind.pack(four_bit_weight(rows, 64).bfloat16()) for rows in (128, 64, 64)]
    x = torch.randn(5, 64).bfloat16()
    before = [part(x) for part in parts]
    whole = kind.concatenated(parts)
    assert torch.equal(whole(x), torch.cat(before, dim=1))
    assert [torch.equal(part(x), want) for part, want in zip(parts, before, strict=True)] == [True] * 3
    assert parts[1].weight.untyped_storage().data_ptr() == whole.weight.untyped_storage().data_ptr()


def save_tiny(tiny_base, folder, **changes):
    tiny_base.model.save_pretrained(folder)
    tiny_base.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@torch.no_grad()
def test_a_local_folder_is_a_base(tiny_base, tmp_path):
    save_tiny(tiny_base, tmp_path)
    base = load_base(str(tmp_path), quantization="none", device="cpu", dtype=torch.float32)
    assert isinstance(base.model, AdaptedLlama)
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.fingerprint.differences(tiny_base.fingerprint) == []
    ids = torch.arange(9)[None]
    assert torch.equal(base.model(input_ids=ids).logits, tiny_base.model(input_ids=ids).logits)


def test_load_errors_name_the_cause_and_the_remedy(tiny_base, tmp_path):
    with pytest.raises(LoadError, match="nobody/nothing.*HF_HUB_OFFLINE is set"):
        load_base("nobody/nothing")
    with pytest.raises(LoadError, match="Check that the folder holds"):
        load_base(str(tmp_path))
    for device in ("foo", "meta", "mps:7", "hpu", ""):
        with pytest.raises(LoadError, match=f"no device '{device}' here. Use 'cpu', 'cuda', 'cuda:1' or 'auto'"):
            load_base(str(tmp_path), device=device)
    with pytest.raises(LoadError, match="one of auto, nf4, int8, none, got '3bit'"):
        load_base(quantization="3bit")
    save_tiny(tiny_base, tmp_path, model_type="gpt2")
    with pytest.raises(LoadError, match="is a gpt2 model"):
        load_base(str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_reported_before_anything_is_loaded():
    with pytest.raises(LoadError, match="no CUDA device"):
        load_base(device="cuda")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@torch.no_grad()
def test_cuda_serves_nf4_by_default_with_a_live_adapter():
    base = load_base()
    assert (base.quantization, base.device.type) == ("nf4", "cuda")
    adapter = random_adapter(base.fingerprint, insertion_layers=30).to(base.device)
    ids = torch.tensor([encode_prompt(base.tokenizer, PROMPT)], device=base.device)
    kv = adapter(base.model)
    plain = base.model(input_ids=ids).logits
    assert torch.equal(plain, base.model(input_ids=ids, prompt_kv=kv.scaled(0.0)).logits)
    assert not torch.equal(plain, base.model(input_ids=ids, prompt_kv=kv).logits)
