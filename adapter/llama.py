"""The frozen base: load it, quantise it, run it with adaption prompts as arguments.

Knows LLaMA models and their tokenizers; knows nothing of adapters on disk, images or conversations.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from adapter import attention, embedded
from adapter.attention import LayerPrompts, PromptKV
from adapter.config import BaseFingerprint
from adapter.errors import LoadError
from adapter.quantize import quantize_linears

log = logging.getLogger(__name__)

QUANTIZATIONS = ("auto", "nf4", "int8", "none")


class AdaptedLlama(LlamaForCausalLM):
    """LlamaForCausalLM whose forward pass also takes `prompt_kv` and `prompt_rows`.

    They are named here, and the parent's parameters repeated, because `generate()` reads this signature:
    it drops arguments that are not in it, and with `*args` it would drop position_ids too.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        prompt_kv: PromptKV | None = None,
        prompt_rows: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As the parent's; prompt_kv: the U entries in use, prompt_rows: [B] entry of each row or -1."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            prompt_kv=prompt_kv,
            prompt_rows=prompt_rows,
            **kwargs,
        )


@dataclass(frozen=True)
class Base:
    """A loaded frozen model with what goes with it. `quantization` is what was chosen, never "auto"."""

    model: AdaptedLlama
    tokenizer: Any
    fingerprint: BaseFingerprint
    quantization: str
    memory_bytes: int

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return int(self.model.config.max_position_embeddings)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = {self.tokenizer.eos_token_id}
        configured = self.model.generation_config.eos_token_id
        ids.update(configured if isinstance(configured, list) else [configured])
        return frozenset(i for i in ids if i is not None)

    def describe(self) -> str:
        """One line for people: name, quantisation, device and memory."""
        megabytes = self.memory_bytes / 2**20
        return f"{self.fingerprint.name}: {self.quantization} on {self.device}, {megabytes:.0f} MB"


def load_base(
    name_or_path: str = embedded.BASE,
    quantization: str = "auto",
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> Base:
    """Load a frozen LLaMA: the embedded default, a Hugging Face repository id, or a folder.

    quantization: "nf4" and "int8" are bitsandbytes; "none" keeps `dtype` (default bfloat16). "auto" is nf4 on
    CUDA, and on a CPU torch's packed products: four bits where they hold the weights exactly, else eight.
    Raises LoadError with the remedy.
    """
    if quantization not in QUANTIZATIONS:
        raise LoadError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LoadError("This machine has no CUDA device. Use device 'cpu' or 'auto'.")
    source = _source(name_or_path)
    chosen = ("nf4" if device.startswith("cuda") else "packed") if quantization == "auto" else quantization
    attention.register()
    dtype = dtype or torch.bfloat16
    config = _load(AutoConfig, source, name_or_path)
    if config.model_type != "llama":
        raise LoadError(
            f"'{name_or_path}' is a {config.model_type} model. LLaMA-Adapter needs a LLaMA: "
            f"try {embedded.BASE} or huggyllama/llama-7b."
        )
    tokenizer = _load(AutoTokenizer, source, name_or_path)
    model = _load(
        AdaptedLlama,
        source,
        name_or_path,
        dtype=dtype,
        attn_implementation=attention.NAME,
        device_map={"": device},
        quantization_config=_bitsandbytes(chosen, dtype),
    )
    model.requires_grad_(False).eval()
    fingerprint = _fingerprint(model, tokenizer, name_or_path)
    if chosen == "packed":
        chosen = quantize_linears(model)
    return Base(model, tokenizer, fingerprint, chosen, _memory(model))


def load_tokenizer(name_or_path: str = embedded.BASE) -> Any:
    """The tokenizer of a base alone. Raises LoadError."""
    return _load(AutoTokenizer, _source(name_or_path), name_or_path)


def _source(name_or_path: str) -> str:
    return str(embedded.base_folder()) if name_or_path == embedded.BASE else name_or_path


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if quantization == "int8":
        # It says once for every product that it casts, and there are hundreds in a token.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def _load(cls: Any, source: str, name: str, **kwargs: Any) -> Any:
    """`from_pretrained` with its many ways to fail turned into one sentence."""
    try:
        return cls.from_pretrained(source, **kwargs)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if Path(source).is_dir():
            remedy = "Check that the folder holds config.json, the weights as safetensors and the tokenizer."
        elif os.environ.get("HF_HUB_OFFLINE"):
            remedy = "HF_HUB_OFFLINE is set: give a folder, unset it, or use " + embedded.BASE + "."
        else:
            remedy = "Check the name and the network, or give a folder."
        raise LoadError(f"Cannot load the base '{name}': {reason} {remedy}") from error


def _memory(model: torch.nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _fingerprint(model: AdaptedLlama, tokenizer: Any, name: str) -> BaseFingerprint:
    config = model.config
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # Norm weights are never quantised, so their hash is the same in every precision that is loaded here.
    weights = model.model.norm.weight.detach().float().cpu().to(torch.bfloat16)
    return BaseFingerprint(
        name=name,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        tokenizer=hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16],
        weights=hashlib.sha256(weights.view(torch.int16).numpy().tobytes()).hexdigest()[:16],
    )


def project_prompts(
    model: AdaptedLlama, prompts: Tensor, gates: Tensor, layers: Sequence[int], norm: bool
) -> PromptKV:
    """Keys and values of adaption prompts by the base's frozen projections; no RoPE on prompts.

    prompts: [U, L, K, hidden_size]; gates: [L, H], already activated; layers: the L insertion layers.
    norm: pass the prompts through each layer's frozen input_layernorm first, so that they look to the
    projections as a token's hidden state does.
    """
    entries, _, length, _ = prompts.shape
    head_dim = model.config.head_dim
    projected = {}
    for i, index in enumerate(layers):
        layer = model.model.layers[index]
        hidden = prompts[:, i].to(model.dtype)
        if norm:
            hidden = layer.input_layernorm(hidden)
        keys = layer.self_attn.k_proj(hidden).view(entries, length, -1, head_dim).transpose(1, 2)
        values = layer.self_attn.v_proj(hidden).view(entries, length, -1, head_dim).transpose(1, 2)
        gate = gates[i].to(model.dtype).expand(entries, -1)
        projected[index] = (LayerPrompts(keys, values, gate),)
    return PromptKV(projected, entries)
