"""Random models: a tiny LLaMA made in milliseconds, adapters for it, and LLaMAs on disk, of any size."""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import Sequence as Decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from adapter.base.hf_folder import tensor_shapes, write_configs, write_weights
from adapter.base.llama import AdaptedLlama
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import save_adapter
from adapter.method.config import AdapterConfig, BaseFingerprint

_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
TINY = {"hidden_size": 32, "num_hidden_layers": 4, **_HEADS, "vocab_size": 97}
_LIMITS = {"intermediate_size": 64, "max_position_embeddings": 128, "attn_implementation": "sdpa"}
_TOKENS = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
FIRST_SPECIAL_TOKEN = 95  # <pad>, then <end>


def tiny_config(kind: Any = LlamaConfig, **changes: Any) -> Any:
    return kind(**{**TINY, **_LIMITS, **_TOKENS, **changes})


FINGERPRINT = BaseFingerprint(name="tiny", **TINY)  # type: ignore[arg-type]


def random_llama(seed: int = 0, std: float = 0.3, random_norms: bool = False, **changes: Any) -> AdaptedLlama:
    """fp32 and frozen. The default std is larger than that of transformers: attention is far from uniform."""
    torch.manual_seed(seed)
    model = AdaptedLlama(tiny_config(**changes))
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=std)
        elif random_norms:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model.requires_grad_(False).eval()


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character, then <pad> (95) and <end> (96), and a chat template."""
    characters = {chr(32 + i): i for i in range(FIRST_SPECIAL_TOKEN)}
    model = Tokenizer(WordLevel({**characters, "<pad>": 95, "<end>": 96}, unk_token="<pad>"))
    model.pre_tokenizer = Split("", "isolated")
    model.decoder = Decoders([ByteFallback(), Fuse()])  # a base's tokenizer is of bytes one way or another
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    return tokenizer


def random_adapter(fingerprint: BaseFingerprint, seed=0, gate=0.5, spread=None, **config) -> Adapter:
    """With random prompts, and gates between gate / 2 and gate. spread: standard deviation of all the rest."""
    torch.manual_seed(seed)
    adapter = Adapter(AdapterConfig(base=fingerprint, **{"prompt_length": 5, "insertion_layers": 3, **config}))
    torch.nn.init.uniform_(adapter.gates, gate / 2, gate)
    for name, parameter in adapter.named_parameters():
        if spread is not None and name not in ("prompts", "gates"):
            torch.nn.init.normal_(parameter, std=spread)
    return adapter.requires_grad_(False).eval()


def save_one_and_two(fingerprint: BaseFingerprint, folder: Path) -> None:
    """Writes two random adapters, `one` and `two`."""
    for seed, name in enumerate(("one", "two")):
        save_adapter(random_adapter(fingerprint, seed), folder / name)


def save_base(model: AdaptedLlama, folder: Path) -> Path:
    """Writes a model and the tokenizer of characters, for what loads a base."""
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def endless_base(tiny_folder: Path, folder: Path) -> Path:
    """Writes to `folder` the tiny base with a context of 100,000 tokens, whose greedy answers never end."""
    shutil.copytree(tiny_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.max_position_embeddings = 100_000
    with torch.no_grad():
        model.get_output_embeddings().weight[FIRST_SPECIAL_TOKEN:] = 0
    model.save_pretrained(folder)
    return folder


def seven_billion_config(layers: int = 32) -> LlamaConfig:
    """The shape of LLaMA-7B, or of some of its layers."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 2048}
    kind = {"dtype": torch.bfloat16, "architectures": ["LlamaForCausalLM"]}
    return LlamaConfig(num_hidden_layers=layers, num_attention_heads=32, **sizes, **kind, **_TOKENS)


def write_random_base(folder: Path, config: LlamaConfig) -> None:
    """Writes a base of random numbers in bfloat16, in files of 0.5 GB, with a tokenizer of characters."""
    write_configs(folder, config, character_tokenizer())
    torch.manual_seed(0)
    # One block of numbers again and again: drawing seven billion takes longer than all the rest. Its length is
    # prime, so that no two rows are alike.
    block = (torch.randn(16_777_213) * 0.02).bfloat16()
    shapes = tensor_shapes(config)

    def tensor(name: str) -> torch.Tensor:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        count = shape[0] * shape[1]
        return block.repeat(-(-count // len(block)))[:count].view(shape) * (1 + len(name) % 7 / 10)

    write_weights(folder, shapes, torch.bfloat16, tensor)
