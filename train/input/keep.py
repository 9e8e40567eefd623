"""Rows that keep what the base knows: text of its own, on which an adapter is trained towards the frozen base.

Which rows a step gets is a function of the seed and the step.
"""

import contextlib
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator
from transformers import DynamicCache

from adapter.base.llama import Base
from adapter.base.template import Message, encode_prompt
from adapter.errors import BadInput, first_line
from adapter.files import atomic_write
from train.formats.record import DataError
from train.input.examples import Example
from train.input.rows import TokenisedRow

OWN_TEXT = "keep.jsonl"  # in the run's folder: what the base wrote
_ROW_TOKENS = 128  # of a text, at most
_FEWEST_TOKENS = 64  # of a part of a longer text; rows of 256 tokens taught no more, for more time (docs/log.md)
_OWN_ROWS = 64  # texts that are drawn from, again and again


class KeepRows:
    """The rows to draw from, as token ids. Every position of a row carries loss."""

    def __init__(self, rows: Sequence[list[int]], seed: int) -> None:
        self._rows, self._seed = rows, seed

    @property
    def digest(self) -> str:
        """Changes with the text."""
        return hashlib.sha256(repr(self._rows).encode()).hexdigest()

    def draw(self, step: int, batch: Sequence[TokenisedRow], count: int) -> list[TokenisedRow]:
        """`count` rows for a step; every second one is shown a picture of the batch, if that has any.

        A row is a part of a text, at most as long as the batch's longest row or 64 tokens: rows cost their share.
        """
        rng = random.Random(f"{self._seed} {step} keep")
        shown = [e for e in (row.example for row in batch) if e.picture is not None or e.features is not None]
        length = max([_FEWEST_TOKENS, *(len(row.ids) for row in batch)])
        rows = []
        for number in range(count):
            text, example = rng.choice(self._rows), Example((), "")
            start = rng.randrange(max(1, len(text) - length + 1))
            ids = text[start : start + length]
            if shown and (step + number) % 2:
                other = rng.choice(shown)
                example = Example((), "", other.features, other.picture, where=other.where)
            rows.append(TokenisedRow(ids, ids, example))
        return rows


def own_rows(base: Base, template: str, seed: int, file: Path, resume: bool) -> list[list[int]]:
    """Rows that the base writes into `file`, and that a resumed run reads there. Raises DataError."""
    try:
        if resume:
            return [json.loads(line)["ids"] for line in file.read_text(encoding="utf-8").splitlines()]
        rows = write_own_rows(base, template, seed, _OWN_ROWS)
        lines = [json.dumps({"text": base.tokenizer.decode(ids), "ids": ids}) + "\n" for ids in rows]
        with atomic_write(file) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{file.name}' in the run's folder cannot be {'read' if resume else 'written'}. Start anew with "
            "another --out.",
            f"{file}: {first_line(error)}",
        ) from error


@torch.no_grad()
def write_own_rows(base: Base, template: str, seed: int, count: int) -> list[list[int]]:
    """`count` rows of the base's own, at temperature 1; half are conversations where the template has a head."""
    generator = Generator().manual_seed(seed)
    tokenizer, length = base.tokenizer, min(_ROW_TOKENS, base.context_length)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    special = set(tokenizer.all_special_ids)
    tokens = [i for i in range(min(len(tokenizer), base.fingerprint.vocab_size)) if i not in special]
    header: list[int] = []  # the tokens of a conversation before the user's words
    mark = "@"
    with contextlib.suppress(BadInput):  # the base has no such template
        text = tokenizer.decode(encode_prompt(tokenizer, [Message("user", mark)], template))
        header = list(tokenizer(text.partition(mark)[0], add_special_tokens=False).input_ids)
    conversations = count // 2 if header else 0
    # A document begins with any token: what the base itself would begin with is nearly always the same.
    first = [tokens[i] for i in torch.randint(len(tokens), (count - conversations,), generator=generator)]
    written: list[list[int]] = []
    for prompts in ([[*start, token] for token in first], [header] * conversations):
        if not prompts:
            continue
        rows = torch.tensor(prompts, device=base.device)
        new, cache = rows, DynamicCache(config=base.model.config)
        while rows.shape[1] < length:  # through ends of turns, after which the base begins others
            logits = base.model(input_ids=new, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            new = torch.multinomial(logits.float().softmax(1).cpu(), 1, generator=generator).to(rows.device)
            rows = torch.cat([rows, new], dim=1)
        written += rows.tolist()
    return written
