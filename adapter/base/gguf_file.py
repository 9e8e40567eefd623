"""LLaMA models in llama.cpp's GGUF files, unpacked into a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from adapter.base.hf_folder import llama3_rope, tensor_shapes, write_converted
from adapter.errors import LoadError, first_line

_ROPE_FACTORS = "rope_freqs.weight"
_CONTROL_TOKEN = 3  # GGUF's token type of <|im_end|> and its like
# A GGUF file only names its pre-tokenizer. These split digits one by one and then work like GPT-2's, which
# transformers' own conversion does not know.
_SPLIT_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
# transformers converts these correctly; any other name would silently give wrong tokens.
_CONVERTIBLE = {"gpt-2", "llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe", "tekken"}
_UNREADABLE = (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, MemoryError)
_REMEDY = "Get the file again, or use the model's Hugging Face repository."


@dataclass(frozen=True)
class GgufBase:
    """An opened file: its metadata, the resulting LlamaConfig, and its tensors by Hugging Face's names."""

    file: Path
    metadata: Mapping[str, Any]
    config: Any
    tensors: Mapping[str, Any]

    def convert(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` reads in half a second.

        transformers can read the GGUF itself, to the same weights, but takes 13 seconds for 135 million of them
        each time, shows bars of its own and gives some tokenizers GPT-2's way with digits.
        """
        eos, eot = (self.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot"))
        stops = () if eos is None or eot in (None, eos) else (eos, eot)
        tokenizer = _tokenizer(self.file, self.metadata, self.config)
        write_converted(
            folder, self.config, tokenizer, stops, lambda name: _dequantized(self.tensors[name], self.file)
        )


def open_gguf(file: Path) -> GgufBase:
    """Read a file's header and check that it is a whole LLaMA. Raises LoadError."""
    try:
        reader = gguf.GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except _UNREADABLE as error:
        raise LoadError(
            f"'{file.name}' is no whole GGUF file. {_REMEDY}", f"{file}: {first_line(error)}"
        ) from error
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise LoadError(
            f"'{file.name}' holds a {architecture} model. LLaMA-Adapter needs a LLaMA: "
            "choose a GGUF file whose general.architecture is llama.",
            str(file),
        )
    if metadata.get("split.count", 1) > 1:
        raise LoadError(
            f"'{file.name}' is one of {metadata['split.count']} parts. Join them with llama.cpp's "
            "`llama-gguf-split --merge` and name the result.",
            str(file),
        )
    if metadata.get("llama.expert_count"):
        raise LoadError(
            f"'{file.name}' is a mixture of experts (Mixtral). Choose a LLaMA without experts.", str(file)
        )
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    try:
        config = _config(file, metadata, by_name)
    except KeyError as error:
        raise LoadError(
            f"'{file.name}' lacks a field in its header. {_REMEDY}", f"{file}: {error.args[0]}"
        ) from error
    return GgufBase(file, metadata, config, _named_by_us(file, by_name, config))


def _config(file: Path, metadata: Mapping[str, Any], by_name: Mapping[str, Any]) -> Any:
    heads = metadata["llama.attention.head_count"]
    head_dim = metadata.get("llama.attention.key_length", metadata["llama.embedding_length"] // heads)
    context = metadata["llama.context_length"]
    rotated = metadata.get("llama.rope.dimension_count", head_dim)
    if rotated != head_dim or metadata.get("llama.attention.value_length", head_dim) != head_dim:
        raise LoadError(
            f"'{file.name}' rotates a part of each head only, which LLaMA does not. Choose a LLaMA.", str(file)
        )
    if 0 < metadata.get("llama.attention.sliding_window", 0) < context:
        raise LoadError(f"'{file.name}' has a sliding window, which LLaMA has not. Choose a LLaMA.", str(file))
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=metadata.get("llama.vocab_size") or len(metadata["tokenizer.ggml.tokens"]),
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=context,
        rms_norm_eps=round(metadata["llama.attention.layer_norm_rms_epsilon"], 9),  # it was stored in fp32
        rope_parameters=_rope(file, metadata, by_name, head_dim),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings="output.weight" not in by_name,
        attention_bias="blk.0.attn_q.bias" in by_name,
        mlp_bias="blk.0.ffn_gate.bias" in by_name,
        dtype=_dtype(by_name),
    )


def _dtype(by_name: Mapping[str, Any]) -> torch.dtype:
    """That of the converted weights: what is not quantised keeps its own.

    The minimum of a group of Q4_K may be many steps from zero: bf16, of 8 bits, would take it off its grid.
    """
    names = {tensor.tensor_type.name for tensor in by_name.values()}
    embedding = by_name.get("token_embd.weight")
    if "Q4_K" in names or (embedding is not None and embedding.tensor_type.name == "F16"):
        return torch.float16
    return torch.float32 if embedding is not None and embedding.tensor_type.name == "F32" else torch.bfloat16


def _rope(file: Path, metadata: Mapping[str, Any], by_name: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    theta = metadata.get("llama.rope.freq_base", 10000.0)
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if _ROPE_FACTORS in by_name:
        return _llama3_rope(file, _dequantized(by_name[_ROPE_FACTORS], file), theta, head_dim)
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": metadata["llama.rope.scaling.factor"]}
    if scaling != "none":
        raise LoadError(
            f"'{file.name}' stretches its context by '{scaling}', which is not supported from a GGUF file. "
            "Use the model's Hugging Face repository.",
            str(file),
        )
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_rope(file: Path, factors: Tensor, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.1's scaling. The file keeps its result alone: `factors`, [head_dim / 2], divide the frequencies."""
    scaling = llama3_rope(theta, round(factors.max().item(), 4))
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=dict(scaling))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    plain = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if factors.shape != scaled.shape or not torch.allclose(plain / scaled, factors.double(), rtol=1e-4):
        raise LoadError(
            f"'{file.name}' scales its rotary frequencies in a way that is not Llama 3.1's. "
            "Use the model's Hugging Face repository.",
            str(file),
        )
    return scaling


def _named_by_us(file: Path, by_name: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The tensors by Hugging Face's names. Raises LoadError if they are not those of a LLaMA of this config."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    expected = tensor_shapes(config)
    theirs = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) or name for name in expected}
    missing = [name for name in sorted(expected) if theirs[name] not in by_name]
    more = by_name.keys() - theirs.values() - {_ROPE_FACTORS}
    if missing or more:
        what = f"lacks {missing[0]}" if missing else f"holds {min(more)}, which a LLaMA does not have"
        raise LoadError(f"'{file.name}' {what}. {_REMEDY}", str(file))
    for name, shape in expected.items():
        if (found := _shape(by_name[theirs[name]])) != shape:
            raise LoadError(
                f"'{file.name}' holds {name} with shape {list(found)}, its header means {list(shape)}. {_REMEDY}",
                str(file),
            )
    return {name: by_name[theirs[name]] for name in expected}


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(length) for length in reversed(tensor.shape))


def _dequantized(tensor: Any, file: Path) -> Tensor:
    try:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        # What is not quantised is still the file itself, which torch may not hold.
        return torch.from_numpy(values if values.flags.writeable else values.copy())
    except NotImplementedError as error:
        raise LoadError(
            f"'{file.name}' holds {tensor.name} as {tensor.tensor_type.name}, which the gguf package cannot "
            "unpack. Choose the file in another quantisation, such as Q8_0 or Q4_K_M.",
            str(file),
        ) from error


def _tokenizer(file: Path, metadata: Mapping[str, Any], config: Any) -> Any:
    if "tokenizer.ggml.tokens" not in metadata:
        raise LoadError(f"'{file.name}' holds no tokenizer. {_REMEDY}", str(file))
    kind, pre_tokenizer = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2" and pre_tokenizer in _SPLIT_DIGITS:
        tokenizer = _single_digit_tokenizer(metadata)
    elif kind == "llama" or (kind == "gpt2" and pre_tokenizer in _CONVERTIBLE):
        tokenizer = _transformers_tokenizer(file)
    else:
        named = f"{kind} with pre-tokenizer {pre_tokenizer}"
        raise LoadError(f"'{file.name}' has a tokenizer ({named}) that is not known here. {_REMEDY}", str(file))
    if len(tokenizer) > config.vocab_size:
        raise LoadError(
            f"'{file.name}' has {len(tokenizer)} tokens and embeddings for {config.vocab_size}. {_REMEDY}",
            str(file),
        )
    return tokenizer


def _transformers_tokenizer(file: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # a foreign vocabulary can make the conversion raise anything
        raise LoadError(
            f"The tokenizer in '{file.name}' cannot be converted. {_REMEDY}", f"{file}: {first_line(error)}"
        ) from error


def _single_digit_tokenizer(metadata: Mapping[str, Any]) -> Any:
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # Digits are split one by one before GPT-2's pattern applies: the blank line before "1." is one token.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    numbers = {short: metadata.get(f"tokenizer.ggml.{long}_token_id") for short, long in named.items()}
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{f"{short}_token": tokens[number] for short, number in numbers.items() if number is not None},
        extra_special_tokens=[t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN],
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer
