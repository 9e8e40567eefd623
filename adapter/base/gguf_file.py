"""LLaMA models in llama.cpp's GGUF files: found by their paths, and unpacked into a Hugging Face folder, once."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from adapter.base.disk_cache import build_once, cache_dir, is_built
from adapter.base.hf_folder import meta_to_hf_rotary, tensor_shapes, write_configs, write_weights
from adapter.errors import LoadError, first_line

# Part of a conversion's identity: increase it, and `embedded._REVISION`, when what is written changes.
_REVISION = 5
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")  # of turns, whatever the header says
_ROPE_FACTORS = "rope_freqs.weight"
# A GGUF file only names its pre-tokenizer. These split digits one by one and then work like GPT-2's, which
# transformers' own conversion does not know.
_SPLIT_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
# transformers cuts these correctly; any other name would silently give wrong tokens.
_CONVERTIBLE = {"gpt-2", "dbrx", "smaug-bpe"}
# These too, but for two rules of llama.cpp: a text begins with the BOS token, unless the file says otherwise, and
# a word that is in the vocabulary is one token.
_WITH_BOS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"}
_UNREADABLE = (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, MemoryError)
_REMEDY = "Get the file again, or use the model's Hugging Face repository."


def find_gguf(name: str) -> Path | None:
    """The GGUF file at the path `name`; None for the embedded base, a Hugging Face folder and a name on the Hub.

    Raises LoadError for another file, a folder in Meta's format, and a path where nothing is.
    """
    path = Path(os.path.expanduser(name))  # Path.expanduser raises if there is no such user
    is_gguf = path.suffix.lower() == ".gguf"
    if path.is_file():
        if is_gguf:
            return path
        raise LoadError(
            f"'{path.name}' is a file but no .gguf. Name a GGUF file, or the folder of the whole base.", name
        )
    if (path / "params.json").is_file() and not (path / "config.json").is_file():
        raise LoadError(
            f"'{path.name}' is a base in Meta's own format. Name its Hugging Face repository, such as "
            "huggyllama/llama-7b, or a GGUF file of it.",
            name,
        )
    if is_gguf or (not path.exists() and (path.is_absolute() or name.startswith((".", "~")))):
        raise LoadError(f"There is no {'file' if is_gguf else 'folder'} '{path.name}'. Check the path.", name)
    return None


def gguf_config(file: Path) -> Any:
    """The LlamaConfig of a file, without converting it. Raises LoadError."""
    folder, state = _cache_place(file)
    return LlamaConfig.from_pretrained(folder) if is_built(folder, state) else GgufBase(file).config


def gguf_folder(file: Path) -> Path:
    """The Hugging Face folder of a file, converted first if necessary. Raises LoadError."""
    folder, state = _cache_place(file)
    return build_once(folder, lambda result, _: GgufBase(file).convert(result), state)


def _cache_place(file: Path) -> tuple[Path, str]:
    """The folder of a file's conversion, one for each path, and the file's state: a change makes it stale."""
    path, found = file.resolve(), file.stat()
    name = re.sub(r"[^\w.-]+", "-", path.stem) or "base"
    folder = cache_dir() / f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    return folder, json.dumps([_REVISION, (str(path), found.st_size, found.st_mtime_ns)])


class GgufBase:
    """An opened file that is a whole LLaMA. config: its LlamaConfig."""

    def __init__(self, file: Path) -> None:
        """Reads the header. Raises LoadError."""
        self._file = file
        try:
            reader = gguf.GGUFReader(file)
            self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        except _UNREADABLE as error:
            detail = f"{file}: {first_line(error)}"
            raise LoadError(f"'{file.name}' is no whole GGUF file. {_REMEDY}", detail) from error
        architecture = self._metadata.get("general.architecture")
        if architecture != "llama":
            raise self._refusal(
                f"holds a {architecture} model. LLaMA-Adapter needs a LLaMA: "
                "choose a GGUF file whose general.architecture is llama."
            )
        if (parts := self._metadata.get("split.count", 1)) > 1:
            raise self._refusal(f"is one of {parts} parts. Join them by llama.cpp's `llama-gguf-split --merge`.")
        if self._metadata.get("llama.expert_count"):
            raise self._refusal("is a mixture of experts (Mixtral). Choose a LLaMA without experts.")
        self._stored = {tensor.name: tensor for tensor in reader.tensors}
        try:
            self.config = self._config()
            self._tensors = self._named_by_us()
        except KeyError as error:
            raise self._refusal(f"lacks {error.args[0]} in its header. {_REMEDY}") from error
        except (ArithmeticError, AssertionError, AttributeError, TypeError, ValueError, StrictDataclassError) as e:
            raise self._refusal(f"has a header that is no LLaMA's. {_REMEDY}") from e

    def convert(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` reads in half a second.

        transformers can read the GGUF itself, to the same weights, but takes 13 seconds for 135 million of them
        each time, shows bars of its own and gives some tokenizers GPT-2's way with digits.
        """
        ends = [self._metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
        texts = self._metadata.get("tokenizer.ggml.tokens", [])
        ends += [texts.index(text) for text in _ENDS if text in texts]
        stops = list(dict.fromkeys(token for token in ends if token is not None))
        write_configs(folder, self.config, self._tokenizer(), stops)
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}

        def tensor(name: str) -> Tensor:
            count = next((count for part, count in heads.items() if part in name), None)
            values = self._dequantized(self._tensors[name])
            return values if count is None else meta_to_hf_rotary(values, count)

        write_weights(folder, tensor_shapes(self.config), self.config.dtype, tensor)

    def _refusal(self, what: str) -> LoadError:
        return LoadError(f"'{self._file.name}' {what}", str(self._file))

    def _config(self) -> Any:
        metadata = self._metadata
        heads = metadata["llama.attention.head_count"]
        head_dim = metadata.get("llama.attention.key_length", metadata["llama.embedding_length"] // heads)
        context, groups = metadata["llama.context_length"], metadata.get("llama.attention.head_count_kv", heads)
        layers, epsilon = metadata["llama.block_count"], metadata["llama.attention.layer_norm_rms_epsilon"]
        theta = metadata.get("llama.rope.freq_base", 10000.0)
        if heads % groups or not (0 < layers <= len(self._stored) and context > 0 and epsilon > 0 and theta > 0):
            raise ValueError("a size or a constant that cannot be")
        rotated = metadata.get("llama.rope.dimension_count", head_dim)
        if rotated != head_dim or metadata.get("llama.attention.value_length", head_dim) != head_dim:
            raise self._refusal("rotates a part of each head only, which LLaMA does not. Choose a LLaMA.")
        if 0 < metadata.get("llama.attention.sliding_window", 0) < context:
            raise self._refusal("has a sliding window, which LLaMA has not. Choose a LLaMA.")
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=metadata.get("llama.vocab_size") or len(metadata["tokenizer.ggml.tokens"]),
            hidden_size=metadata["llama.embedding_length"],
            intermediate_size=metadata["llama.feed_forward_length"],
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            max_position_embeddings=context,
            rms_norm_eps=round(epsilon, 9),  # it was stored in fp32
            rope_parameters=self._rope(theta, head_dim),
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
            pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
            tie_word_embeddings="output.weight" not in self._stored,
            attention_bias="blk.0.attn_q.bias" in self._stored,
            mlp_bias="blk.0.ffn_gate.bias" in self._stored,
            dtype=self._dtype(),
            four_bits=self._four_bits(),
        )

    def _four_bits(self) -> float:
        """The share of the layers' weights that four bits hold exactly."""
        layers = [t for t in self._stored.values() if t.name.startswith("blk.") and len(t.shape) == 2]
        exact = [t for t in layers if t.tensor_type.name in ("Q4_0", "Q4_1", "Q4_K")]
        return round(sum(int(t.n_elements) for t in exact) / max(1, sum(int(t.n_elements) for t in layers)), 4)

    def _dtype(self) -> torch.dtype:
        """The dtype of all converted weights, which keeps most of what the file has."""
        kinds = {name: tensor.tensor_type.name for name, tensor in self._stored.items()}
        embedding = kinds.get("token_embd.weight")
        # The minimum of a group of Q4_K may be many steps from zero, for which bf16 has too few bits.
        if "Q4_K" in kinds.values() or embedding == "F16":
            return torch.float16
        return torch.float32 if embedding == "F32" else torch.bfloat16

    def _rope(self, theta: float, head_dim: int) -> dict[str, Any]:
        factor = self._metadata.get("llama.rope.scaling.factor", self._metadata.get("llama.rope.scale_linear"))
        scaling = self._metadata.get("llama.rope.scaling.type", "linear" if factor else "none")
        if _ROPE_FACTORS in self._stored:
            return self._llama3_rope(theta, head_dim)
        if scaling not in ("none", "linear"):
            raise self._refusal(f"stretches its context by '{scaling}', which is not supported here. {_REMEDY}")
        if scaling == "none" or not factor:
            return {"rope_type": "default", "rope_theta": theta}
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}

    def _llama3_rope(self, theta: float, head_dim: int) -> dict[str, Any]:
        """Llama 3.1's scaling. The file keeps its result alone: [head_dim / 2] factors divide the frequencies."""
        factors = self._dequantized(self._stored[_ROPE_FACTORS])
        scaling = {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": round(factors.max().item(), 4),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        config = LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=dict(scaling))
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
        plain = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        if factors.shape != scaled.shape or not torch.allclose(plain / scaled, factors.double(), rtol=1e-4):
            raise self._refusal(f"scales its rotary frequencies in a way that is not Llama 3.1's. {_REMEDY}")
        return scaling

    def _named_by_us(self) -> dict[str, Any]:
        """The tensors by Hugging Face's names. Raises LoadError if they are no LLaMA's of this config."""
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, self.config.num_hidden_layers)
        expected = tensor_shapes(self.config)
        theirs = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) or name for name in expected}
        missing = [name for name in sorted(expected) if theirs[name] not in self._stored]
        more = self._stored.keys() - theirs.values() - {_ROPE_FACTORS}
        if missing or more:
            what = f"lacks {missing[0]}" if missing else f"holds {min(more)}, which a LLaMA does not have"
            raise self._refusal(f"{what}. {_REMEDY}")
        found = {name: self._stored[theirs[name]] for name in expected}
        for name, shape in expected.items():
            if tuple(found[name].shape[::-1]) != shape:
                raise self._refusal(f"holds {name} with another shape than its header means, {shape}. {_REMEDY}")
        return found

    def _dequantized(self, tensor: Any) -> Tensor:
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise self._refusal(
                f"holds {tensor.name} as {tensor.tensor_type.name}, which the gguf package cannot unpack. "
                "Choose the file in another quantisation, such as Q8_0 or Q4_K_M."
            ) from error
        # What is not quantised is still the file itself, which torch may not hold.
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def _tokenizer(self) -> Any:
        metadata = self._metadata
        if "tokenizer.ggml.tokens" not in metadata:
            raise self._refusal(f"holds no tokenizer. {_REMEDY}")
        kind, cut = (metadata.get(f"tokenizer.ggml.{field}") for field in ("model", "pre"))
        if kind != "llama" and (kind != "gpt2" or cut not in _SPLIT_DIGITS | _CONVERTIBLE | _WITH_BOS):
            raise self._refusal(
                f"has a tokenizer ({kind} with pre-tokenizer {cut}) that is not known here. {_REMEDY}"
            )
        try:
            tokenizer = self._converted_tokenizer(kind, cut)
        except Exception as error:  # a foreign vocabulary can make the conversion raise anything
            raise self._refusal(f"has a tokenizer that cannot be converted. {_REMEDY}") from error
        if (size := len(tokenizer)) > self.config.vocab_size:
            raise self._refusal(f"has {size} tokens and embeddings for {self.config.vocab_size}. {_REMEDY}")
        return tokenizer

    def _converted_tokenizer(self, kind: str, cut: str | None) -> Any:
        """transformers' conversion, where that differs from llama.cpp as there."""
        metadata, tokens = self._metadata, self._metadata["tokenizer.ggml.tokens"]
        with tempfile.TemporaryDirectory() as alone:  # a tokenizer.json beside it may be another model's
            os.symlink(self._file.resolve(), Path(alone) / "model.gguf")
            converted = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
        parts = json.loads(converted.backend_tokenizer.to_str())
        parts["post_processor"] = None
        # It gives a vocabulary without them the special tokens of GPT-2 or Llama 1, after the last one.
        parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] < len(tokens)]
        parts["model"]["ignore_merges"] = cut in _WITH_BOS
        if kind == "llama":  # a space before each text between control tokens, also before one that has a space
            spaced = metadata.get("tokenizer.ggml.add_space_prefix", True)
            prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
            parts["pre_tokenizer"] = None
            if not spaced:
                parts["decoder"]["decoders"] = [d for d in parts["decoder"]["decoders"] if d["type"] != "Strip"]
        core = Tokenizer.from_str(json.dumps(parts))
        if kind == "llama":
            core.normalizer = normalizers.Sequence([prepend, replace] if spaced else [replace])
        elif cut in _SPLIT_DIGITS:
            # Digits are split one by one before GPT-2's pattern applies: the blank line before "1." is one token.
            core.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        numbers = {short: metadata.get(f"tokenizer.ggml.{long}_token_id") for short, long in named.items()}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            **{f"{short}_token": tokens[number] for short, number in numbers.items() if number is not None},
            extra_special_tokens=[token["content"] for token in parts["added_tokens"] if token["special"]],
            add_bos_token=metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or cut in _WITH_BOS),
            add_eos_token=metadata.get("tokenizer.ggml.add_eos_token", False),
            model_max_length=metadata["llama.context_length"],
            clean_up_tokenization_spaces=False,
        )
        tokenizer.chat_template = metadata.get("tokenizer.chat_template")
        return tokenizer
