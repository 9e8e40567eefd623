"""LLaMA models as Meta ships them: `params.json`, `consolidated.*.pth` and `tokenizer.model`, converted into a
Hugging Face folder.

Only tensors are read from a .pth: one with code in it is refused.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from adapter.base.foreign.meta_tokenizer import ends_of_answer, meta_tokenizer
from adapter.base.hf_folder import llama3_rope, tensor_shapes, write_converted
from adapter.errors import LoadError, first_line

_NAMES = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
_META_NAMES = {ours: theirs for theirs, ours in _LAYER_NAMES.items()}
_IGNORED = "rope.freqs"  # computed anew from params.json
_REMEDY = "Download the folder again, or use the model's Hugging Face repository."


@dataclass(frozen=True)
class MetaBase:
    """An opened folder: the LlamaConfig it means, its shards (mapped, not read), its tokenizer's file.

    split_dims: by Hugging Face's name, the dimension in which a tensor is split over the shards; None if every
    shard holds all of it.
    """

    folder: Path
    config: Any
    shards: Sequence[Mapping[str, Tensor]]
    split_dims: Mapping[str, int | None]
    tokenizer_file: Path

    def convert(self, folder: Path) -> None:
        """Fill `folder`. Holds about one output file in memory: the shards stay on the disk."""
        config = self.config
        later = config.rope_parameters["rope_type"] == "llama3"
        tokenizer = meta_tokenizer(self.tokenizer_file, later)
        if len(tokenizer) > config.vocab_size:
            raise LoadError(
                f"'{self.tokenizer_file.name}' has {len(tokenizer)} tokens, the embeddings in "
                f"'{self.folder.name}' are {config.vocab_size}. Lay the model's own tokenizer.model there.",
                f"{self.folder}: {self.tokenizer_file}",
            )
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        write_converted(folder, config, tokenizer, ends_of_answer(tokenizer), self._tensor)

    def _tensor(self, name: str) -> Tensor:
        """One tensor under Hugging Face's name, put together from its shards."""
        theirs, split_dim = _meta_name(name), self.split_dims[name]
        parts = [shard[theirs] for shard in self.shards]
        return parts[0] if split_dim is None else torch.cat(parts, dim=split_dim)


def is_meta(folder: Path) -> bool:
    """Whether the folder looks like one of Meta's."""
    return (folder / "params.json").is_file() or any(folder.glob("consolidated*.pth"))


def meta_files(folder: Path) -> list[Path]:
    """The files that a conversion reads. Raises LoadError if one is missing."""
    params = folder / "params.json"
    if not params.is_file():
        raise LoadError(f"'{folder.name}' holds consolidated.*.pth but no params.json. {_REMEDY}", str(folder))
    shards = sorted(folder.glob("consolidated*.pth"))
    wanted = ["consolidated.pth"] if len(shards) == 1 and shards[0].name == "consolidated.pth" else None
    wanted = wanted or [f"consolidated.{number:02}.pth" for number in range(max(len(shards), 1))]
    for name in wanted:
        if not (folder / name).is_file():
            raise LoadError(f"'{folder.name}' lacks {name}. {_REMEDY}", str(folder))
    for place in (folder, folder.resolve().parent):
        if (place / "tokenizer.model").is_file():
            return [params, *(folder / name for name in wanted), place / "tokenizer.model"]
    raise LoadError(
        f"There is no tokenizer.model in '{folder.name}' or the folder above it, where Meta puts it. "
        "Copy it there, or use the model's Hugging Face repository.",
        str(folder),
    )


def open_meta(folder: Path) -> MetaBase:
    """Map a folder's shards and check that they are the LLaMA of its params.json. Raises LoadError."""
    params_file, *shard_files, tokenizer_file = meta_files(folder)
    try:
        params = json.loads(params_file.read_text(encoding="utf-8"))
        dim, layers, heads = (int(params[key]) for key in ("dim", "n_layers", "n_heads"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LoadError(
            f"'{params_file.name}' is no params.json of a LLaMA. {_REMEDY}", f"{params_file}: {error!r}"
        ) from error
    shards = [_load(file) for file in shard_files]
    if getattr(shards[0].get("tok_embeddings.weight"), "ndim", 0) != 2:
        raise LoadError(f"'{shard_files[0]}' holds no tok_embeddings.weight: it is no LLaMA. {_REMEDY}")
    config = _config(folder, params, shards, (dim, layers, heads))
    return MetaBase(folder, config, shards, _split_dims(folder, config, shards), tokenizer_file)


def _load(file: Path) -> Mapping[str, Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"'{file.name}' holds more than tensors, and such a file may run code. It was not opened. "
            "Use Meta's own file, or the model's Hugging Face repository (safetensors).",
            str(file),
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise LoadError(
            f"'{file.name}' is damaged or not fully downloaded. {_REMEDY}", f"{file}: {first_line(error)}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise LoadError(f"'{file.name}' is not a table of tensors, as consolidated.*.pth is. {_REMEDY}", str(file))
    return {name: values for name, values in tensors.items() if not name.endswith(_IGNORED)}


def _config(
    folder: Path, params: Mapping[str, Any], shards: Sequence[Mapping[str, Tensor]], sizes: tuple[int, int, int]
) -> Any:
    dim, layers, heads = sizes
    embedding = shards[0]["tok_embeddings.weight"]
    vocab = int(params.get("vocab_size", -1))
    if vocab < 1:  # Llama 1 and 2 leave it to the tokenizer; theirs is split by columns
        vocab = embedding.shape[0] * (len(shards) if embedding.shape[1] == dim else 1)
    theta = float(params.get("rope_theta", 10000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if params.get("use_scaled_rope"):
        # Meta's files do not name the factor. Llama 3.2's 1B and 3B have 32, all others 8.
        rope = llama3_rope(theta, float(params.get("rope_scaling_factor", 32.0 if dim <= 3072 else 8.0)))
    try:
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=vocab,
            hidden_size=dim,
            intermediate_size=_feed_forward(dim, params.get("ffn_dim_multiplier"), params.get("multiple_of", 256)),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=params.get("n_kv_heads") or heads,
            max_position_embeddings=_context(folder, params, vocab, theta),
            rms_norm_eps=float(params.get("norm_eps", 1e-5)),
            rope_parameters=rope,
            pad_token_id=None,
            tie_word_embeddings=_tied(shards),
            dtype=embedding.dtype if embedding.dtype.is_floating_point else torch.bfloat16,
        )
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise LoadError(
            f"'params.json' describes no LLaMA. {_REMEDY}", f"{folder}: {first_line(error)}"
        ) from error


def _feed_forward(dim: int, multiplier: float | None, multiple_of: int) -> int:
    """Two thirds of 4 * dim, stretched, and rounded up."""
    size = int(2 * 4 * dim / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return -(-size // multiple_of) * multiple_of


def _context(folder: Path, params: Mapping[str, Any], vocab: int, theta: float) -> int:
    """Meta's files do not say it: told from what differs between the releases, never too long."""
    if "max_seq_len" in params:
        return int(params["max_seq_len"])
    if params.get("use_scaled_rope"):
        return 131072  # Llama 3.1 and on
    if vocab >= 128000:
        return 8192  # Llama 3
    if theta > 10000:
        return 16384  # Code Llama
    named = "llama-2" in str(folder.resolve()).lower().replace("llama2", "llama-2")
    return 4096 if named or params.get("n_kv_heads") else 2048


def _tied(shards: Sequence[Mapping[str, Tensor]]) -> bool:
    if "output.weight" not in shards[0]:
        return True
    for shard in shards:
        one, other = shard.get("tok_embeddings.weight"), shard.get("output.weight")
        if one is None or other is None or one.shape != other.shape:
            return False
        if not torch.equal(one[:16], other[:16]) or not torch.equal(one, other):
            return False
    return True


def _split_dims(folder: Path, config: Any, shards: Sequence[Mapping[str, Tensor]]) -> dict[str, int | None]:
    """How each tensor is split. Told from its shape: Llama 3 splits the embeddings by rows, Llama 2 by columns."""
    expected = tensor_shapes(config)
    ours = {_meta_name(name): name for name in expected}
    allowed = ours.keys() | ({"output.weight"} if config.tie_word_embeddings else set())
    for number, shard in enumerate(shards):
        missing, unknown = ours.keys() - shard.keys(), shard.keys() - allowed
        if missing or unknown:
            what = f"lacks {min(missing)}" if missing else f"holds {min(unknown)}, which a LLaMA does not have"
            raise LoadError(f"Shard {number:02} of '{folder.name}' {what}. {_REMEDY}", str(folder))
    shapes = {theirs: [tuple(shard[theirs].shape) for shard in shards] for theirs in ours}
    # wq's size hangs on dim alone: an N-th of its rows means that there were N shards.
    whole, rows = config.hidden_size, shapes["layers.0.attention.wq.weight"][0]
    if len(rows) == 2 and rows[1] == whole and whole % rows[0] == 0 and whole // rows[0] > len(shards):
        raise LoadError(
            f"'{folder.name}' holds {len(shards)} of {whole // rows[0]} shards: "
            f"consolidated.{len(shards):02}.pth is missing. {_REMEDY}",
            str(folder),
        )
    return {name: _split_dim(folder, theirs, expected[name], shapes[theirs]) for theirs, name in ours.items()}


def _split_dim(folder: Path, name: str, whole: tuple[int, ...], parts: Sequence[tuple[int, ...]]) -> int | None:
    if all(part == whole for part in parts) and (len(parts) == 1 or len(whole) == 1):
        return None
    first = parts[0]
    split = [i for i, (part, length) in enumerate(zip(first, whole, strict=False)) if part != length]
    alike = len(first) == len(whole) == 2 and all(part == first for part in parts)
    if alike and len(split) == 1 and first[split[0]] * len(parts) == whole[split[0]]:
        return split[0]
    raise LoadError(
        f"params.json in '{folder.name}' means {name} to be {list(whole)}, {len(parts)} consolidated.*.pth hold "
        f"{' and '.join(sorted({str(list(part)) for part in parts}))} each. {_REMEDY}",
        str(folder),
    )


def _meta_name(name: str) -> str:
    """Meta's name of a tensor that Hugging Face calls `name`."""
    stem, kind = name.rsplit(".", 1)
    for theirs, ours in _NAMES.items():
        if stem == ours:
            return f"{theirs}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"layers.{layer}.{_META_NAMES[part]}.{kind}"
