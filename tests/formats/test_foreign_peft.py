"""PEFT's ADAPTION_PROMPT, by running PEFT: prefill and decode with a cache, fp32."""

import json

import pytest
import torch
from peft import AdaptionPromptConfig, get_peft_model
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from adapter.errors import LoadError
from adapter.formats.convert import Options, convert
from tests.reference_llama import IDS, converted_logits, stepwise_logits

CLOSE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def random_peft_model(folder, length=5, layers=3, seed=0):
    """A PEFT model with random prompts, and gates of both signs, some beyond 1."""
    torch.manual_seed(seed)
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = AdaptionPromptConfig(adapter_len=length, adapter_layers=layers, task_type="CAUSAL_LM")
    model = get_peft_model(plain, config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("adaption_gate"):
            weight.uniform_(-1.5, 1.5)
    return model


@torch.no_grad()
@pytest.mark.parametrize("length, layers", [(1, 4), (5, 3)])
def test_a_peft_adapter_gives_the_logits_of_peft(small, tmp_path, length, layers):
    model, folder = small
    theirs = random_peft_model(folder, length, layers)
    theirs.save_pretrained(tmp_path / "peft")
    expected = stepwise_logits(theirs, IDS)
    assert (expected - stepwise_logits(model, IDS)).abs().max() > 0.02  # the adapter does something
    assert_close(converted_logits(model, folder, tmp_path / "peft", tmp_path / "ours"), expected, **CLOSE)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"peft_type": "LORA"}, "PEFT's LORA"),
        ({"adapter_layers": 2}, "says adapter_layers 2, the weights have 3"),
        ("[" * 100_000, "is no PEFT configuration"),
    ],
)
def test_a_broken_folder_is_refused(small, tmp_path, config, message):
    random_peft_model(small[1]).save_pretrained(tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(LoadError, match=message):
        convert(str(tmp_path / "peft"), tmp_path / "to", Options(base=str(small[1])))
    assert not (tmp_path / "to").exists()
