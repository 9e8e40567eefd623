"""A LLaMA as a Hugging Face folder, written and read tensor by tensor."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LlamaForCausalLM

# Bytes of an output file. A conversion holds about one of them in memory.
SHARD_BYTES = 5 * 10**8
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# All files of a folder that hold weights or name those that do.
WEIGHTS = (_WHOLE, _INDEX, "model*-of-*.safetensors")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def tensor_shapes(config: Any, model: Any = None) -> dict[str, tuple[int, ...]]:
    """Every tensor that a LLaMA of this LlamaConfig, or `model`, has on disk. A tied head is the embedding's."""
    if model is None:
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
    shapes = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def tensor_files(folder: Path) -> dict[str, Path]:
    """The safetensors file of each stored tensor. Raises OSError, ValueError, KeyError or SafetensorError."""
    index, whole = folder / _INDEX, folder / _WHOLE
    if whole.is_file():  # transformers reads it, too, where an older index lies beside it
        with safe_open(whole, framework="pt", backend="pread") as tensors:
            return dict.fromkeys(tensors.keys(), whole)
    if not index.is_file():
        return {}
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return {name: folder / file for name, file in names.items()}


def stored_tensors(files: Mapping[str, Path], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors in order, each read from its file when it is asked for.

    They are not mapped: a mapped file counts whole against the limits of a process's memory as long as one of its
    tensors lives, and the system refuses to map one that is larger than its memory. Raises OSError, KeyError or
    SafetensorError if one is not there.
    """
    opened: dict[Path, Any] = {}
    for name in names:
        file = files[name]
        if file not in opened:
            opened[file] = safe_open(file, framework="pt", backend="pread")
        yield name, opened[file].get_tensor(name)


class StoredMatrix:
    """A matrix in a safetensors file, [out, in], of which rows are read when asked for: `matrix[first:last]`.

    Reading a large one at once takes longer, as the system must clear new memory for it.
    """

    def __init__(self, file: Path, name: str) -> None:
        """Raises OSError, KeyError or SafetensorError."""
        with safe_open(file, framework="pt", backend="pread") as tensors:  # checks the header, too
            self.shape = tuple(tensors.get_slice(name).get_shape())
        with file.open("rb") as stored:
            size = int.from_bytes(stored.read(8), "little")
            about = json.loads(stored.read(size))[name]
        self._file, self._dtype, self._start = file, _DTYPES[about["dtype"]], 8 + size + about["data_offsets"][0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Thread-safe. Raises OSError or ValueError if the file has gone or was cut off since."""
        first, last, _ = rows.indices(self.shape[0])
        row_bytes = self.shape[1] * self._dtype.itemsize
        start = self._start + first * row_bytes
        data = np.fromfile(self._file, np.uint8, (last - first) * row_bytes, offset=start)
        return torch.from_numpy(data.reshape(last - first, row_bytes)).view(self._dtype)


def meta_to_hf_rotary(values: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection, [heads * head_dim, ...], in the order of Hugging Face's RoPE.

    Meta and llama.cpp rotate neighbouring rows of a head together, Hugging Face rows i and i + head_dim / 2.
    """
    pairs = values.unflatten(0, (heads, -1, 2))  # [heads, head_dim / 2, 2, ...]
    return pairs.transpose(1, 2).flatten(0, 2)


def write_configs(folder: Path, config: Any, tokenizer: Any, stop_ids: Sequence[int] = ()) -> None:
    """Write everything but the weights. stop_ids: what ends an answer, if not `eos_token_id` alone."""
    config.save_pretrained(folder)
    generation = GenerationConfig.from_model_config(config)
    if stop_ids:
        generation.eos_token_id = list(stop_ids)
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_weights(
    folder: Path, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, tensor: Callable[[str], Tensor]
) -> None:
    """Write `tensor(name)` for each name of `shapes`, in that order, as safetensors in one or several files."""
    sizes = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(sizes, max_shard_size=SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        shown = tqdm(names, f"Converting {file}", disable=None)
        part = {name: tensor(name).to(dtype).contiguous() for name in shown}
        save_file(part, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
