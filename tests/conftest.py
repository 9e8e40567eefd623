"""What tests share: a tiny random grouped-query LLaMA, and the real embedded base, loaded once."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What was trained or brought on this machine is no part of the tests, nor theirs of that.
os.environ["LLAMA_ADAPTER_RUNS"] = tempfile.mkdtemp(prefix="runs-")

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, PreTrainedTokenizerFast

from adapter.base.llama import AdaptedLlama, Base, load_base
from adapter.method.adapter import Adapter
from adapter.method.config import AdapterConfig, BaseFingerprint

# Most models here are tiny: a second thread would cost more than it does, and far more beside other programs.
torch.set_num_threads(1)

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
}


def tiny_config(**changes: int) -> LlamaConfig:
    """Of a LLaMA that is made in milliseconds."""
    return LlamaConfig(
        **{**TINY, **changes},
        intermediate_size=64,
        max_position_embeddings=128,
        attn_implementation="sdpa",
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )


@pytest.fixture(scope="session")
def tiny() -> AdaptedLlama:
    """A random LLaMA with grouped queries, fp32, frozen."""
    torch.manual_seed(0)
    model = AdaptedLlama(tiny_config())
    for name, weight in model.named_parameters():
        # Larger than transformers' initialisation, so that attention is far from uniform.
        torch.nn.init.normal_(weight, std=0.3) if "norm" not in name else None
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def tiny_fingerprint() -> BaseFingerprint:
    return BaseFingerprint(name="tiny", **TINY)


def random_adapter(fingerprint: BaseFingerprint, seed: int = 0, gate: float = 0.5, **config) -> Adapter:
    """An adapter with random prompts and gates that are surely not zero."""
    torch.manual_seed(seed)
    config = {"prompt_length": 5, "insertion_layers": 3, **config}
    adapter = Adapter(AdapterConfig(base=fingerprint, **config))
    torch.nn.init.uniform_(adapter.gates, gate / 2, gate)
    return adapter.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def base():
    """The embedded base as served by default on this machine."""
    return load_base()


@pytest.fixture(scope="session")
def tiny_base(tiny, tiny_fingerprint) -> Base:
    """The tiny LLaMA with a tokenizer of one token a printable character; token 96 ends an answer."""
    characters = {chr(32 + i): i for i in range(95)}
    model = Tokenizer(WordLevel({**characters, "<pad>": 95, "<end>": 96}, unk_token="<pad>"))
    model.pre_tokenizer = Split("", "isolated")
    model.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    return Base(tiny, tokenizer, tiny_fingerprint, "none", 0)


@pytest.fixture(scope="session")
def tiny_folder(tiny_base, tmp_path_factory) -> Path:
    """The tiny base on disk, as other programs' processes load it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_base.model.save_pretrained(folder)
    tiny_base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=[4, 2], ids=["mha", "gqa"])
def small(request, tiny_base, tmp_path_factory) -> tuple[AdaptedLlama, Path]:
    """A random LLaMA whose logits are of ordinary size, without and with grouped queries, fp32; and its folder."""
    torch.manual_seed(1)
    model = AdaptedLlama(tiny_config(num_key_value_heads=request.param))
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, std=0.15) if "norm" not in name else torch.nn.init.uniform_(weight, 0.5, 1.5)
    folder = tmp_path_factory.mktemp("small")
    model.save_pretrained(folder)
    tiny_base.tokenizer.save_pretrained(folder)
    return model.requires_grad_(False).eval(), folder


@pytest.fixture
def toasts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page says in toasts."""
    import gradio as gr  # most tests need no page

    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: said.append(text))
    monkeypatch.setattr(gr, "Info", lambda text, **_: said.append(text))
    return said
