"""Meta's format: the numbers are those of Meta's convention, and what is wrong with a folder is said."""

from __future__ import annotations

import dataclasses
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from adapter.base import resolve
from adapter.base.foreign.meta_tokenizer import meta_tokenizer
from adapter.base.llama import load_base
from adapter.errors import LoadError, with_detail
from tests.meta_llama import Meta, sentencepiece_model, tiktoken_table

SIZES = {"dim": 32, "n_heads": 4, "n_layers": 3, "multiple_of": 16, "norm_eps": 1e-5}
VOCAB3 = 270 + 256
LLAMA = Meta({**SIZES, "vocab_size": -1}, vocab=340)
LLAMA_13B = Meta({**SIZES, "vocab_size": -1}, vocab=340, shards=2)
LLAMA2_70B = Meta({**SIZES, "vocab_size": -1, "n_kv_heads": 2, "ffn_dim_multiplier": 1.3}, vocab=340, shards=2)
SCALED = {"rope_theta": 500000.0, "use_scaled_rope": True, "rope_scaling_factor": 8.0}
LLAMA3 = Meta({**SIZES, **SCALED, "vocab_size": VOCAB3, "n_kv_heads": 2}, vocab=VOCAB3, llama3=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fresh(kind: Meta) -> Meta:
    return dataclasses.replace(kind, tensors={}, params=dict(kind.params)).filled()


def loaded(folder: Path):
    return load_base(str(folder), quantization="none", device="cpu", dtype=torch.float32)


@torch.no_grad()
def logits(base, ids, start=0):
    positions = torch.arange(start, start + len(ids))[None]
    return base.model(input_ids=ids[None], position_ids=positions).logits[0].double()


@pytest.mark.parametrize("kind", [LLAMA_13B, LLAMA2_70B, LLAMA3])
def test_logits_are_those_of_metas_convention(kind, tmp_path):
    written = fresh(kind)
    base = loaded(written.write(tmp_path / "model"))
    ids = torch.randint(0, written.vocab, (40,))
    for start in (0, 3000):  # far out, scaled frequencies are others
        assert_close(logits(base, ids, start), written.logits(ids, start), rtol=1e-4, atol=1e-3)


def test_converted_once_and_again_when_a_file_changes(tmp_path, cache, monkeypatch):
    folder = fresh(LLAMA).write(tmp_path / "llama-2-7b")
    assert loaded(folder).context_length == 4096  # the only place where it is said
    monkeypatch.setattr(resolve, "open_meta", lambda _: pytest.fail("converted again"))
    loaded(folder)
    monkeypatch.undo()
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", str(cache))
    other = fresh(LLAMA)
    other.tensors["norm.weight"] = torch.full((32,), 2.0)
    torch.save(other.parts(0), folder / "consolidated.00.pth")
    assert (loaded(folder).model.model.norm.weight == 2).all()


# Tokenizers.


def by_rank(text: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding as tiktoken defines it: join the neighbours of the lowest rank until none is left."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while True:
        joins = {i: ranks[a + b] for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks}
        if not joins:
            return [ranks[part] for part in parts]
        i = min(joins, key=lambda i: joins[i])
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_tiktoken_tokenizer_cuts_as_tiktoken_does(tmp_path):
    ranks = tiktoken_table(tmp_path / "tokenizer.model")
    tokenizer = meta_tokenizer(tmp_path / "tokenizer.model", later=True)
    begin = len(ranks)
    for words in (["the", " cat", " sat"], ["202", "4"], ["é", "日本"], ["the", "\n\n", "cat"], ["  ", " the"]):
        expected = [number for word in words for number in by_rank(word.encode(), ranks)]
        assert tokenizer("".join(words)).input_ids == [begin, *expected]
        assert tokenizer.decode(expected) == "".join(words)
    chat = "<|start_header_id|>user<|end_header_id|>\n\nthe<|eot_id|>"
    ids = tokenizer(chat, add_special_tokens=False).input_ids
    assert (ids[0], ids[-1]) == (begin + 6, begin + 9)


def test_llama3_stops_at_the_end_of_a_turn_too(tmp_path):
    base = loaded(fresh(LLAMA3).write(tmp_path / "model"))
    stops = base.tokenizer.convert_ids_to_tokens(sorted(base.stop_ids))
    assert set(stops) == {"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"}
    assert base.context_length == 131072


# Bad input. Each folder is a good one with one file changed.


class Code:
    def __reduce__(self):
        return os.system, ("touch /tmp/llama_adapter_ran_code",)


def damage(folder, written, name, content):
    """content: changes of a file, a size to cut it to (of a tokenizer: of tokens), or None: no such file."""
    file = folder / name
    if content is None:
        file.unlink()
    elif isinstance(content, int) and name == "tokenizer.model":
        sentencepiece_model(file, size=content)
    elif isinstance(content, int):
        os.truncate(file, content)
    elif name == "params.json":
        file.write_text(json.dumps({**written.params, **content}))
    else:
        torch.save({**written.parts(1), **content}, file)


FIRST, LAST = "consolidated.00.pth", "consolidated.01.pth"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (LAST, 20_000, r"consolidated\.01\.pth' is damaged or not fully downloaded.*Download the folder again"),
        (FIRST, {"more": Code()}, r"consolidated\.00\.pth' holds more than tensors.*not opened.*safetensors"),
        (LAST, None, r"holds 1 of 2 shards: consolidated\.01\.pth is missing.*Download"),
        ("params.json", None, r"no params\.json"),
        ("params.json", {"n_kv_heads": 4}, r"means layers\.0\.attention\.wk\.weight to be \[32, 32\].*\[8, 32\]"),
        ("params.json", {"n_layers": 2}, r"Shard 00 of .* holds layers\.2\."),
        ("tokenizer.model", 350, r"has 350 tokens, the embeddings .* are 340\. Lay the model's own"),
    ],
)
def test_bad_folders_are_refused_and_leave_nothing(name, content, sentence, tmp_path, cache):
    written = fresh(LLAMA2_70B)
    folder = written.write(tmp_path / "above" / "model")
    damage(folder, written, name, content)
    with pytest.raises(LoadError, match=sentence) as caught:
        loaded(folder)
    assert "\n" not in str(caught.value) and str(folder) in with_detail(caught.value)
    assert not Path("/tmp/llama_adapter_ran_code").exists()
    assert [path for path in cache.glob("*") if path.is_dir()] + list(cache.glob(".*")) == []
