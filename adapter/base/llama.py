"""The frozen base: loading, quantising, and running it with adaption prompts as arguments of the call."""

import contextlib
import copy
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, save_torch_state_dict, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, GenerationConfig, LlamaConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

from adapter.base import embedded, memory
from adapter.base.decoder import adapt
from adapter.base.disk_cache import MANIFEST, build_once, cache_dir, is_built
from adapter.base.gguf_file import find_gguf, gguf_config, gguf_folder
from adapter.base.hf_folder import SHARD_BYTES, WEIGHTS, StoredMatrix, stored_tensors, tensor_files, tensor_shapes
from adapter.base.packed.integer_product import compile_products
from adapter.base.packed.quantize import REVISION, PackedEmbedding, PackedLinear, pack, quantize_linears
from adapter.base.template import Message, default_template, encode_prompt
from adapter.base.threads import available_cores
from adapter.errors import LoadError, first_line
from adapter.method.attention import PromptKV
from adapter.method.config import BaseFingerprint, base_label

log = logging.getLogger(__name__)
# The first warns at its import that an optional kernel is not installed; the second logs a line for every product
# of int8, and a token has hundreds.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# Else transformers asks a Space to convert what is no safetensors, by a pull request to its repository.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
_ATTENTION = "sdpa"  # whose masks our layers take
_DISK_TO_SPARE = 10**9  # bytes that must stay free beside kept weights


class AdaptedLlama(LlamaForCausalLM):
    """LlamaForCausalLM whose forward pass also takes `prompt_kv` and `prompt_rows`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        adapt(self.model)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        prompt_kv: PromptKV | None = None,
        prompt_rows: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As the parent's. prompt_kv: U entries; prompt_rows: [B], the entry of each row.

        `generate()` would drop arguments that are not named in this signature.
        """
        kwargs |= {"logits_to_keep": logits_to_keep, "prompt_kv": prompt_kv, "prompt_rows": prompt_rows}
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)


@dataclass(frozen=True)
class Base:
    """A loaded frozen model and its tokenizer. `quantization` is the one in use, never "auto"."""

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
        """The largest number of tokens of a prompt and its answer together."""
        return int(self.model.config.max_position_embeddings)

    def logits(self, hidden: Tensor) -> Tensor:
        """[P, hidden_size] -> [P, vocab_size] in fp32. A packed head rounds to its input's type."""
        return self.model.lm_head(hidden.float() if self.quantization.startswith("packed") else hidden).float()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        configured = self.model.generation_config.eos_token_id
        ids = [self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
        return frozenset(i for i in ids if isinstance(i, int))

    def describe(self) -> str:
        """One line of text: name, quantisation, device and memory."""
        return f"{self.fingerprint.name}: {self.quantization} on {self.device}, {self.memory_bytes / 1e6:.0f} MB"


def load_base(
    name_or_path: str = embedded.BASE,
    quantization: str = "auto",
    device: str = "auto",
    dtype: torch.dtype | None = None,
    keep_packed: bool = False,
) -> Base:
    """Load a frozen LLaMA: the embedded default, a Hugging Face id or folder, or a GGUF file, which is converted
    once and kept in the cache.

    quantization: "packed-int8" and "packed-int4" are products of packed weights, on a CPU; weights that four bits
    hold exactly stay so, others are rounded. "nf4" and "int8" are bitsandbytes; "none" keeps `dtype` (default
    bfloat16, on a GPU without it float16). "auto" chooses by the memory that is free. Weights are packed while
    they are read, one by one: the memory of the packed base is enough. keep_packed: write them to a folder beside
    the base's files (a Hub base: in the cache). Where such a folder is of these files, it is always read.
    Raises LoadError with the remedy.
    """
    if quantization not in embedded.QUANTIZATIONS:
        raise LoadError(f"quantization must be one of {', '.join(embedded.QUANTIZATIONS)}, got {quantization!r}.")
    if (device := _usable_device(device)) == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    remedy = "" if dtype is None else "Choose a smaller precision (the sizes are above) or base"
    dtype = dtype or memory.half_precision(device)
    config, label = base_config(name_or_path), base_label(name_or_path)
    chosen, why = _chosen_quantization(quantization, config, device, dtype)
    log.info("Loading %s on %s as %s: %s", label, device, dtype if chosen == "none" else chosen, why)
    memory.require(label, config, chosen, device, dtype, remedy)
    tokenizer = load_tokenizer(name_or_path)
    bits = {"packed-int4": 4, "packed-int8": 8}.get(chosen)
    model = None if bits is None else _load_packed(name_or_path, config, dtype, bits, keep_packed)
    if model is None:
        if bits is not None:  # it is packed once it is loaded whole
            memory.require(label, config, "none", device, dtype, "Store it as safetensors, packed one by one")
            if keep_packed:
                log.warning("The packed weights are not kept: the base's files are no plain safetensors")
        model = _load_by_transformers(name_or_path, config, chosen, device, dtype)
    model.requires_grad_(False).eval()
    norm = _stored(name_or_path, "model.norm.weight")  # as stored: the model's own copy is rounded to dtype
    norm = model.model.norm.weight.detach() if norm is None else norm
    fingerprint = _fingerprint(config, tokenizer, norm, name_or_path)
    if bits is not None:
        try:
            chosen = quantize_linears(model, bits)
        except ValueError as error:
            raise _wrong_weight(name_or_path, "a weight", f"cannot be packed ({error})") from error
    storages = [tensor.untyped_storage() for tensor in model.state_dict().values()]
    taken = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    return Base(model, tokenizer, fingerprint, chosen, taken)


def _usable_device(device: str) -> str:
    """The device that is meant. Raises LoadError if it is not here or cannot compute."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LoadError("This machine has no CUDA device. Use device 'cpu' or 'auto'.")
    try:
        torch.zeros(1, device=device).item()  # fails on "meta", which cannot compute
    except (RuntimeError, AssertionError, ImportError) as error:
        raise LoadError(f"PyTorch cannot compute on '{device}'. Use 'cpu', or CUDA_VISIBLE_DEVICES=''.") from error
    return "cpu" if device.startswith("cpu:") else device  # as accelerate numbers it for several processes


def _chosen_quantization(asked: str, config: LlamaConfig, device: str, dtype: torch.dtype) -> tuple[str, str]:
    """The quantisation to load in, never "auto", and why."""
    chosen, why = (asked, "as asked") if asked != "auto" else memory.choose_quantization(config, device, dtype)
    if not chosen.startswith("packed"):
        return chosen, why
    if getattr(config, "quantization_config", None):
        raise LoadError("This base is quantised already. Use it as it is, with quantisation 'auto'.")
    if device != "cpu":
        raise LoadError("Packed weights are multiplied by processors only. Use nf4, or CUDA_VISIBLE_DEVICES=''.")
    try:
        compile_products()
    except Exception as error:  # numba and LLVM raise nearly anything
        return "none", f"packed products cannot be compiled here ({first_line(error)})"
    return chosen, why


def _load_packed(name: str, config: LlamaConfig, dtype: torch.dtype, bits: int, keep: bool) -> AdaptedLlama | None:
    """The model on the CPU, each bias-free linear layer packed as soon as its weight is read.

    transformers' loader would hold the model in the files' precision before a layer can be packed. In four bits
    the embedding is packed too, whose table of 16 bits would be a sixteenth of the base. None if the base is
    not stored as a LLaMA's plain safetensors, which is for transformers to read.
    """
    try:
        folder = beside = Path(_source(name))
        if not folder.is_dir():
            folder = Path(snapshot_download(name, allow_patterns=[*WEIGHTS, "generation_config.json"]))
            beside = cache_dir() / name.replace("/", "--")  # the Hub's own cache is not ours to add to
        place, state = beside / f"packed-int{bits}", _packed_from(folder, dtype)
        both = {"lm_head.weight", "model.embed_tokens.weight"} <= tensor_files(folder).keys()
        config.tie_word_embeddings &= not both  # as transformers does
        with torch.device("meta"):
            model = AdaptedLlama._from_config(config, dtype=dtype, attn_implementation=_ATTENTION)
        if kept := is_built(place, state):
            log.info("Reading the packed weights that were kept in %s", place)
            _read_packed(model, place)
        elif not _pack_stored(model, folder, bits, name):
            return None
        with contextlib.suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # a connection's is of another library
        raise _not_loaded(name, error) from error
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # computed from the config, not stored
    if keep and not kept:
        _keep_packed(model, place, state)
    return model


def _pack_stored(model: AdaptedLlama, folder: Path, bits: int, name: str) -> bool:
    """Fill a model on the meta device with a folder's weights. False if they are not a LLaMA's safetensors."""
    files, shapes, dtype = tensor_files(folder), tensor_shapes(model.config, model), model.dtype
    if "model.embed_tokens.weight" not in files:  # no prefixes, or tied and stored under the head's name
        return False
    if missing := shapes.keys() - files.keys():
        raise _wrong_weight(name, min(missing), "is not among its weights")
    _refuse_more(name, files.keys() - shapes.keys())
    # The largest first, while there is room for what they take beside their packed form.
    largest_first = sorted(shapes, key=lambda name: math.prod(shapes[name]), reverse=True)
    for tensor in tqdm(largest_first, "Loading weights", disable=None):
        path, _, kind = tensor.rpartition(".")
        module = model.get_submodule(path)
        is_linear = type(module) is nn.Linear and module.bias is None
        is_table = type(module) is nn.Embedding and bits == 4 and not model.config.tie_word_embeddings
        weight: Tensor | StoredMatrix
        if is_linear or is_table:
            weight = StoredMatrix(files[tensor], tensor)
        else:
            ((_, weight),) = stored_tensors(files, [tensor])
        if tuple(weight.shape) != shapes[tensor]:
            raise _wrong_weight(name, tensor, f"has shape {tuple(weight.shape)}, not {shapes[tensor]}")
        if isinstance(weight, Tensor):
            _require_finite(name, tensor, weight := weight.to(dtype))
            setattr(module, kind, nn.Parameter(weight))
            continue
        try:
            packed = pack(weight, bits, path) if is_linear else PackedEmbedding(pack(weight), dtype)
        except ValueError as error:
            raise _wrong_weight(name, tensor, str(error)) from error
        model.set_submodule(path, packed)
    model.tie_weights()
    quantize_linears(model, bits)  # what was not packed on the way: a head tied to the embedding
    return True


def _refuse_more(name: str, unused: Iterable[str]) -> None:
    """Raises LoadError if a layer has weights that are not in its config: the answers would be another model's."""
    if more := [one for one in unused if one.startswith("model.layers.") and not one.endswith(".inv_freq")]:
        raise _wrong_weight(name, min(more), "is not in its config.json")


def _packed_from(folder: Path, dtype: torch.dtype) -> str:
    """What packed weights depend on: the files of the base, `dtype` and the code that packs."""
    files = [folder / "config.json", *sorted(set(tensor_files(folder).values()))]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([REVISION, str(dtype), stats])


def _keep_packed(model: AdaptedLlama, place: Path, state: str) -> None:
    """Write a packed model's tensors to the folder `place`, or log why not."""
    tensors = model.state_dict()

    def fill(result: Path, _: Path) -> None:
        if place.exists() and not (place / MANIFEST).is_file():
            raise OSError(f"{place.name} is there and was not made by this program")
        needed = sum(tensor.nbytes for tensor in tensors.values()) + _DISK_TO_SPARE
        if (free := shutil.disk_usage(result).free) < needed:
            raise OSError(f"{needed / 1e9:.1f} GB must be free on the disk, and {free / 1e9:.1f} GB are")
        save_torch_state_dict(tensors, result, max_shard_size=SHARD_BYTES)

    try:
        build_once(place, fill, state)
    except LoadError as error:
        log.warning("The packed weights are not kept: %s", error.detail)


def _read_packed(model: AdaptedLlama, place: Path) -> None:
    """Fill a model on the meta device with the tensors that `_keep_packed` wrote."""
    files, dtype = tensor_files(place), model.dtype
    tensors = dict(tqdm(stored_tensors(files, files), "Loading packed weights", len(files), disable=None))
    for tensor, weight in tensors.items():
        if weight.dtype == torch.uint8:
            path = tensor.removesuffix(".weight").removesuffix(".table")
            module = model.get_submodule(path)
            packed = PackedLinear.stored(weight, *module.weight.shape)
            is_table = isinstance(module, nn.Embedding)
            model.set_submodule(path, PackedEmbedding(packed, dtype) if is_table else packed)
    model.load_state_dict(tensors, assign=True)


def _load_by_transformers(
    name: str, config: LlamaConfig, quantization: str, device: str, dtype: torch.dtype
) -> AdaptedLlama:
    model, info = _load(
        AdaptedLlama,
        name,
        config=config,
        dtype=dtype,
        attn_implementation=_ATTENTION,
        device_map={"": device},
        quantization_config=_bitsandbytes(quantization, dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for tensor, shape, wanted in info["mismatched_keys"]:
        raise _wrong_weight(name, tensor, f"has shape {tuple(shape)}, not {tuple(wanted)}")
    # transformers makes up what is missing. Formats of other quantisers have tensors that need not be stored.
    if not getattr(config, "quantization_config", None):
        if missing := info["missing_keys"]:
            raise _wrong_weight(name, min(missing), "is not among its weights")
        _refuse_more(name, info["unexpected_keys"])
    tensors: Iterable[tuple[str, Tensor]] = model.state_dict().items()
    shapes: dict[str, tuple[int, ...]] = {}
    if quantization != "none" and (files := _local_files(name)):
        # bitsandbytes makes finite codes of NaN, and takes any shape.
        tensors, shapes = stored_tensors(files, files), tensor_shapes(config)
    for tensor, values in tensors:
        if (wanted := shapes.get(tensor, values.shape)) != values.shape:
            raise _wrong_weight(name, tensor, f"has shape {tuple(values.shape)}, not {wanted}")
        _require_finite(name, tensor, values.to(dtype) if values.is_floating_point() else values)
    if quantization == "nf4" and device == "cpu":
        try:
            multiply_once(copy.deepcopy(model.model.layers[0]), dtype)  # a copy: training needs other products
        except (AssertionError, RuntimeError) as error:
            sentence = f"bitsandbytes cannot multiply matrices of the sizes of '{base_label(name)}' here. "
            raise LoadError(sentence + "Load it as packed-int4.", first_line(error)) from error
    return model


@torch.no_grad()
def multiply_once(module: nn.Module, dtype: torch.dtype) -> None:
    """Multiplies zeros of `dtype` by each matrix of a module on a CPU: bitsandbytes may pack nf4 weights in place
    in a matrix's first product, without a lock. Raises AssertionError or RuntimeError for sizes it cannot take.
    """
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear(torch.zeros(1, 1, linear.in_features, dtype=dtype))


def load_tokenizer(name_or_path: str = embedded.BASE) -> Any:
    """The tokenizer of a base alone. Raises LoadError."""
    tokenizer = _load(AutoTokenizer, name_or_path)
    if {*tokenizer("a", add_special_tokens=False).input_ids} <= {tokenizer.unk_token_id}:  # it was made up
        raise LoadError(f"'{base_label(name_or_path)}' lacks the vocabulary of its tokenizer. Download all of it.")
    if str(getattr(tokenizer, "vocab_file", None)).endswith(".model"):
        # Llama 1 and 2 begin with BOS, and transformers 5 leaves it out unless the folder says so.
        tokenizer.add_bos_token = tokenizer.init_kwargs.get("add_bos_token", True)
    if len(tokenizer) > (known := base_config(name_or_path).vocab_size):  # often for padding, which nobody reads
        ids = encode_prompt(tokenizer, [Message("user", "a")], default_template(tokenizer))
        if max(ids, default=0) >= known:
            raise LoadError(f"The chat template of '{base_label(name_or_path)}' has a token without an embedding.")
    return tokenizer


def base_config(name_or_path: str = embedded.BASE) -> LlamaConfig:
    """The LlamaConfig of a base, without loading it; the embedded one is fetched first. Raises LoadError."""
    if (gguf := find_gguf(name_or_path)) is not None:
        return gguf_config(gguf)
    return _as_llama(_load(AutoConfig, name_or_path), name_or_path)


def base_fingerprint(name_or_path: str = embedded.BASE) -> BaseFingerprint:
    """The fingerprint of a base without loading it: its sizes, its tokenizer and one norm. Raises LoadError.

    `weights` stays empty where that norm is not on this machine as safetensors.
    """
    config, tokenizer = base_config(name_or_path), load_tokenizer(name_or_path)
    return _fingerprint(config, tokenizer, _stored(name_or_path, "model.norm.weight"), name_or_path)


def base_weight(name_or_path: str, tensor: str) -> Tensor:
    """One weight of a base, such as "model.norm.weight", read without loading the base. Raises LoadError."""
    if (found := _stored(name_or_path, tensor)) is None:
        raise LoadError(
            f"{tensor} of the base '{base_label(name_or_path)}' is not here. "
            "Name a folder that holds its safetensors.",
            name_or_path,
        )
    return found


def _stored(name_or_path: str, tensor: str) -> Tensor | None:
    """One tensor of a base's safetensors in a folder or in the Hub's cache; None if it is not found."""
    try:
        return dict(stored_tensors(_local_files(name_or_path), [tensor]))[tensor]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _local_files(name: str) -> dict[str, Path]:
    """The safetensors file of each tensor in a folder or in the Hub's cache; empty if there is none."""
    folder = Path(_source(name))
    if not folder.is_dir():
        config = try_to_load_from_cache(name, "config.json")
        if not isinstance(config, str | Path):
            return {}
        folder = Path(config).parent
    return tensor_files(folder)


def _source(name_or_path: str) -> str:
    """The folder or Hub id for `from_pretrained`; a GGUF file is converted into the cache first."""
    if name_or_path == embedded.BASE:
        return str(embedded.base_folder())
    gguf = find_gguf(name_or_path)
    return os.path.expanduser(name_or_path) if gguf is None else str(gguf_folder(gguf))


def _as_llama(config: Any, name: str) -> LlamaConfig:
    """The config of a LLaMA, or of a Mistral without a sliding window, which has the same architecture."""
    if isinstance(stored := getattr(config, "quantization_config", None), dict) and stored.get("load_in_8bit"):
        stored["llm_int8_threshold"] = 0.0  # as in `_bitsandbytes`
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        raise LoadError(
            f"'{base_label(name)}' uses longrope, which scales positions by the longest text in a batch: other "
            "requests would change an answer. Use a base without longrope."
        )
    if config.model_type not in ("llama", "mistral"):
        raise LoadError(
            f"'{base_label(name)}' is a {config.model_type} model. LLaMA-Adapter needs a LLaMA: "
            f"try {embedded.BASE} or huggyllama/llama-7b."
        )
    if not (config.rms_norm_eps > 0 and config.max_position_embeddings > 0):  # nor NaN
        raise LoadError(f"The config.json of '{base_label(name)}' has numbers that no LLaMA has. Get it again.")
    if config.model_type == "llama":
        return config
    if (config.sliding_window or config.max_position_embeddings) < config.max_position_embeddings:
        raise LoadError(
            f"'{base_label(name)}' is a Mistral that attends to its last {config.sliding_window} tokens only, "
            "which a LLaMA does not. Use one without a sliding window, such as mistralai/Mistral-7B-v0.3."
        )
    fields = config.to_dict()
    for key in ("model_type", "architectures", "sliding_window", "layer_types"):
        fields.pop(key, None)
    return LlamaConfig(architectures=["LlamaForCausalLM"], **fields)


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if quantization == "int8":
        # Without a threshold it quantises activations row by row. With one, every column in which any row has an
        # outlier is computed in another precision for all rows: a neighbour would change a row's answer.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return None


def _load(cls: Any, name: str, **kwargs: Any) -> Any:
    """`from_pretrained` with its errors as LoadError of one sentence."""
    try:
        return cls.from_pretrained(_source(name), trust_remote_code=False, **kwargs)  # nor asks for it
    except (LoadError, MemoryError):
        raise
    except Exception as error:
        raise _not_loaded(name, error) from error


def _not_loaded(name: str, error: BaseException) -> LoadError:
    if isinstance(error, torch.OutOfMemoryError):
        remedy = "The GPU's memory is full: end other programs on it, or choose nf4 or a smaller base."
    elif os.path.exists(os.path.expanduser(name)):
        remedy = "Check that the folder holds config.json, the weights as safetensors and the tokenizer."
    elif isinstance(error.__cause__ or error, GatedRepoError):  # such as Meta's own
        remedy = "It is gated: accept its terms on the Hub and run `.venv/bin/hf auth login`, or give a folder."
    elif constants.is_offline_mode():
        remedy = "HF_HUB_OFFLINE is set: give a folder, unset it, or use " + embedded.BASE + "."
    else:
        remedy = "Check the name and the network, or give a folder."
    return LoadError(f"Cannot load the base '{base_label(name)}'. {remedy}", f"{name}: {first_line(error)}")


def _wrong_weight(name: str, tensor: str, what: str) -> LoadError:
    return LoadError(
        f"Cannot load the base '{base_label(name)}': {tensor} {what}. Get its files again, or use another base.",
        name,
    )


def _require_finite(name: str, tensor: str, values: Tensor) -> None:
    if not values.is_floating_point() or values.itemsize == 1 or not values.numel():
        return  # aminmax, which is many times as fast as isfinite, has no eight-bit floats of other quantisers
    if not all(bound.isfinite() for bound in values.aminmax()):  # NaN if there is one
        raise _wrong_weight(name, tensor, "holds numbers that are not finite")


def _fingerprint(config: LlamaConfig, tokenizer: Any, norm: Tensor | None, name: str) -> BaseFingerprint:
    """norm: the weight of the model's last norm, None if it is not known."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # Norm weights are never quantised: their hash is the same in every precision, but for fp16 copies of fp32.
    weights = b"" if norm is None else norm.float().cpu().to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    return BaseFingerprint(
        name=base_label(name),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        tokenizer=hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16],
        weights=hashlib.sha256(weights).hexdigest()[:16] if weights else "",
    )
