"""Hugging Face folders of every LLaMA there is, and of the Mistrals that are one."""

import pytest
import torch
from transformers import LlamaForCausalLM, MistralForCausalLM

from adapter.base.llama import AdaptedLlama, base_config, load_base
from adapter.errors import LoadError
from tests.fake_hub import fake_hub
from tests.tiny_models import save_base, tiny_config

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def saved(kind, folder, **changes):
    torch.manual_seed(0)
    model = kind(tiny_config(kind.config_class, **changes)).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.3)
    save_base(model, folder)
    return model


def loaded(folder):
    return load_base(str(folder), quantization="none", device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("kind, changes", [
    (LlamaForCausalLM, {"tie_word_embeddings": True}),
    (LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    (LlamaForCausalLM, {"attention_bias": True, "head_dim": 16}),
    (MistralForCausalLM, {"head_dim": 16, "sliding_window": None}),
    (MistralForCausalLM, {"head_dim": 16, "sliding_window": 128}),  # the whole context
])  # fmt: skip
@torch.no_grad()
def test_llamas_and_mistrals_without_a_window_give_transformers_logits_bit_for_bit(kind, changes, tmp_path):
    model = saved(kind, tmp_path, **changes)
    base = loaded(tmp_path)
    assert isinstance(base.model, AdaptedLlama)
    ids = torch.arange(90)[None]
    assert torch.equal(base.model(input_ids=ids).logits, model(input_ids=ids).logits)
    tied = base.model.lm_head.weight is base.model.model.embed_tokens.weight
    assert tied == bool(changes.get("tie_word_embeddings"))


def test_a_mistrals_window_a_missing_path_and_terms_to_accept_are_named(tmp_path):
    saved(MistralForCausalLM, tmp_path, sliding_window=64)
    with pytest.raises(LoadError, match=r"its last 64 tokens only.*mistralai/Mistral-7B-v0\.3"):
        loaded(tmp_path)
    with pytest.raises(LoadError, match="There is no folder 'nope'"):  # nor is it taken for an id of the Hub
        base_config("./nope")
    with fake_hub(), pytest.raises(LoadError, match="accept its terms"):
        load_base("gated/llama")
