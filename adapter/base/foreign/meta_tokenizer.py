"""Meta's `tokenizer.model`, of which there are two kinds under one name, as a Hugging Face tokenizer.

Llama 1 and 2 (and Code Llama): a sentencepiece model. Llama 3: tiktoken's table of byte strings.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from adapter.errors import LoadError, first_line

_REMEDY = "Get the file again, or use the model's Hugging Face repository."

# The tokens behind Llama 3's table that texts and chats use, by their place there; the rest are reserved.
_RESERVED = 256
_LLAMA3_0 = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
_LLAMA3_1 = {**_LLAMA3_0, 4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
# Tokens that end an answer in Llama 3.
_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
# What the converted tokenizer must cut as sentencepiece itself does.
_PROBES = ("The quick brown fox, in 2024: 3.50!", "  two\n\n\tspaces ", "naïve 日本 🙂", "a")


def meta_tokenizer(file: Path, later: bool = False) -> Any:
    """The tokenizer in `file`. later: of Llama 3.1 and on, which gave names to some of the reserved tokens.

    Raises LoadError when it is neither kind or damaged.
    """
    try:
        ranks = _tiktoken_ranks(file)
        return _tiktoken(ranks, later) if ranks else _sentencepiece(file)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise LoadError(
            f"'{file.name}' is not a tokenizer of Meta's or is damaged. {_REMEDY}", f"{file}: {first_line(error)}"
        ) from error


def ends_of_answer(tokenizer: Any) -> list[int]:
    """Ids of the tokens that end an answer, if there are more than the end of the text."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in _ENDS if token in vocabulary]


def _sentencepiece(file: Path) -> Any:
    pieces = SentencePieceProcessor(model_file=str(file))
    numbers = range(pieces.get_piece_size())
    vocabulary = {pieces.id_to_piece(i): i for i in numbers}
    kinds = (pieces.is_control, pieces.is_unknown, pieces.is_byte, pieces.is_unused)
    ordinary = {pieces.id_to_piece(i) for i in numbers if not any(of_kind(i) for of_kind in kinds)}
    # sentencepiece joins the neighbours whose union scores best; a merge that comes first is tried first.
    by_score = sorted(ordinary, key=lambda piece: (-pieces.get_score(vocabulary[piece]), vocabulary[piece]))
    merges = [
        (piece[:cut], piece[cut:])
        for piece in by_score
        for cut in range(1, len(piece))
        if piece[:cut] in ordinary and piece[cut:] in ordinary
    ]
    unknown = pieces.id_to_piece(pieces.unk_id())
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = [pieces.id_to_piece(i) for i in (pieces.bos_id(), pieces.eos_id())]
    tokenizer = _finished(core, *names, unk_token=unknown)
    for probe in _PROBES:
        if tokenizer(probe, add_special_tokens=False).input_ids != pieces.encode(probe):
            raise ValueError("it cuts text in another way than LLaMA's does")
    return tokenizer


def _tiktoken_ranks(file: Path) -> dict[bytes, int]:
    """The table of byte strings, or nothing if this is no such file."""
    data = file.read_bytes()
    try:
        rows = [line.split() for line in data.splitlines() if line]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except (ValueError, binascii.Error):
        return {}


def _tiktoken(ranks: dict[bytes, int], later: bool) -> Any:
    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(_: str) -> dict[bytes, int]:  # theirs needs the tiktoken package to read the table
            return ranks

    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([i]) not in ranks for i in range(256)):
        raise ValueError("its table has gaps")
    named = _LLAMA3_1 if later else _LLAMA3_0
    reserved = iter(range(_RESERVED))
    special = [named.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(_RESERVED)]
    core = Converter(vocab_file="", extra_special_tokens=special).converted()
    return _finished(core, named[0], named[1])


def _finished(core: Any, bos: str, eos: str, **names: str) -> Any:
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False, **names
    )
