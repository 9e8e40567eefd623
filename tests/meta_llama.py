"""Tiny random LLaMAs in Meta's format, with both kinds of tokenizers, and their logits by the reference."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from tests.reference_llama import reference_logits, rotate_pairs

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "in", "house", "2024", "naïve", "café"]


def sentencepiece_model(file: Path, size: int = 340) -> Path:
    """A tokenizer trained in a moment on random sentences, with LLaMA's settings."""
    chosen = random.Random(0)
    lines = (" ".join(chosen.choices(WORDS, k=12)) for _ in range(500))
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=written,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
        num_threads=1,
    )
    file.write_bytes(written.getvalue())
    return file


def tiktoken_table(file: Path) -> dict[bytes, int]:
    """A table as Llama 3's tokenizer.model: all bytes, then joins of what is there."""
    tokens = [bytes([i]) for i in range(256)]
    for word in ("th", "the", " the", "ca", "cat", " cat", "20", "202", "  ", "\n\n", "é", "he", "at", "sat"):
        tokens.append(word.encode())
    ranks = {token: rank for rank, token in enumerate(tokens)}
    rows = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    file.write_text("\n".join(rows) + "\n")
    return ranks


@dataclass(frozen=True)
class Meta:
    """What a folder of Meta's holds: params.json, and whole tensors under Meta's names."""

    params: dict[str, Any]
    vocab: int
    shards: int = 1
    llama3: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kv_heads(self) -> int:
        return self.params.get("n_kv_heads") or self.params["n_heads"]

    @property
    def feed_forward(self) -> int:
        size = int(self.params.get("ffn_dim_multiplier", 1) * int(8 * self.params["dim"] / 3))
        return math.ceil(size / self.params["multiple_of"]) * self.params["multiple_of"]

    def filled(self) -> Meta:
        torch.manual_seed(0)
        dim, head_dim = self.params["dim"], self.params["dim"] // self.params["n_heads"]
        self.tensors["tok_embeddings.weight"] = torch.randn(self.vocab, dim)
        for i in range(self.params["n_layers"]):
            for name, shape in {
                "attention.wq": (dim, dim),
                "attention.wk": (self.kv_heads * head_dim, dim),
                "attention.wv": (self.kv_heads * head_dim, dim),
                "attention.wo": (dim, dim),
                "feed_forward.w1": (self.feed_forward, dim),
                "feed_forward.w2": (dim, self.feed_forward),
                "feed_forward.w3": (self.feed_forward, dim),
            }.items():
                self.tensors[f"layers.{i}.{name}.weight"] = torch.randn(shape) * 0.3
            self.tensors[f"layers.{i}.attention_norm.weight"] = torch.rand(dim) + 0.5
            self.tensors[f"layers.{i}.ffn_norm.weight"] = torch.rand(dim) + 0.5
        self.tensors["norm.weight"] = torch.rand(dim) + 0.5
        self.tensors["output.weight"] = torch.randn(self.vocab, dim) * 0.3
        return self

    def parts(self, number: int) -> dict[str, Tensor]:
        """The tensors of one shard, split as Meta's model-parallel layers split them."""
        found = {"rope.freqs": torch.ones(self.params["dim"] // self.params["n_heads"] // 2)}
        for name, values in self.tensors.items():
            if values.dim() == 1:
                found[name] = values
                continue
            by_columns = name.endswith(("wo.weight", "w2.weight")) or (
                name == "tok_embeddings.weight" and not self.llama3
            )
            found[name] = values.chunk(self.shards, dim=int(by_columns))[number].clone()
        return found

    def write(self, folder: Path, tokenizer: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "params.json").write_text(json.dumps(self.params))
        for number in range(self.shards):
            torch.save(self.parts(number), folder / f"consolidated.{number:02}.pth")
        if tokenizer and self.llama3:
            tiktoken_table(folder / "tokenizer.model")
        elif tokenizer:
            sentencepiece_model(folder / "tokenizer.model")
        return folder

    def frequencies(self) -> Tensor:
        head_dim = self.params["dim"] // self.params["n_heads"]
        found = []
        for i in range(head_dim // 2):
            frequency = self.params.get("rope_theta", 10000.0) ** (-2 * i / head_dim)
            if self.params.get("use_scaled_rope"):
                factor, low, high, original = self.params["rope_scaling_factor"], 1, 4, 8192
                length = 2 * math.pi / frequency
                if length > original / low:
                    frequency /= factor
                elif length > original / high:
                    smooth = (original / length - low) / (high - low)
                    frequency = (1 - smooth) * frequency / factor + smooth * frequency
            found.append(frequency)
        return torch.tensor(found, dtype=torch.float64)

    def logits(self, ids: Tensor, start: int = 0) -> Tensor:
        """[T] token ids at the positions start, start + 1, … -> [T, vocab], in fp64."""
        how = {"frequencies": self.frequencies(), "start": start, "eps": self.params["norm_eps"]}
        return reference_logits(self.tensors, ids[None], {}, {}, rotate_pairs, **how)[0]
