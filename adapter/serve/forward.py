"""The base's forward pass for serving: next tokens of several rows, each with its own KV cache and prompts."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapter.base.decoder import final_delta
from adapter.base.llama import Base, multiply_once
from adapter.base.memory import to_device
from adapter.errors import first_line
from adapter.method.attention import PromptKV
from adapter.serve.compiled.forward import CompiledForward
from adapter.serve.kv_cache import KVCache, Slot, StepCache

log = logging.getLogger(__name__)

# Prompts are padded and masked to a multiple of this, for the same reason as adapter.serve.kv_cache.BLOCK.
_PROMPT_MULTIPLE = 16


class TorchForward:
    """The pass of any base on any device, by its own layers: several rows of one new token, or one of several. A
    row's logits do not depend on other rows, up to the order of summation.
    """

    reads_ragged = False  # whether each of several rows may have several new tokens

    def __init__(self, base: Base) -> None:
        self._base = base
        self._seen, self._hidden = torch.tensor([0.0, float("-inf")], dtype=base.model.dtype, device=base.device)

    def prepare(self, prompts: PromptKV | None) -> Any:
        """The prompts of one row in the form that the pass reads."""
        return self.stack([prompts])

    def stack(self, prepared: Sequence[PromptKV | None]) -> Any:
        """What `prepare` made of the rows in order, for the call. Raises if they do not fit together."""
        if all(p is None for p in prepared):
            return None
        return PromptKV.stack([p or PromptKV({}) for p in prepared], _PROMPT_MULTIPLE)

    @torch.inference_mode()
    def __call__(
        self,
        cache: KVCache,
        ids: Sequence[Sequence[int]],
        slots: Sequence[Slot],
        starts: Sequence[int],
        prompts: PromptKV | None,
        every: bool = False,
    ) -> Tensor:
        """The logits in fp32 after the last new token of each row, or after every one: [tokens, vocab_size].
        slots: of the rows, in ascending order; starts: how many tokens each slot holds; prompts: from `stack`.
        """
        tokens = [token for new in ids for token in new]
        row_positions = [start + i for start, new in zip(starts, ids, strict=True) for i in range(len(new))]
        rows, count = len(ids), len(tokens)
        assert rows in (1, count)
        step = StepCache(cache.data, slots, starts, count // rows)
        token_ids, positions = to_device([tokens, row_positions], self._base.device)  # one copy, not waited for
        # Rows of one token: tokens [N, 1], masks [N, 1, 1, span]. Tokens of one row: [1, N], [1, 1, N, span].
        as_rows = rows == count
        shape = (count, 1) if as_rows else (1, count)
        sizes = step.sizes if as_rows else [count]
        masks = []  # additive, one for each run of the cache
        for until, span in zip(positions.split(sizes), step.spans, strict=True):
            places = torch.arange(span, device=positions.device)
            mask = torch.where(places > until[:, None], self._hidden, self._seen)
            masks.append(mask[:, None, None] if as_rows else mask[None, None])

        model = self._base.model.model
        hidden = model.embed_tokens(token_ids.view(shape))
        rotation = model.rotary_emb(hidden, positions.view(shape))
        for layer in model.layers:
            hidden = layer.forward(hidden, masks, rotation, step, prompts)
        hidden = final_delta(model.norm(hidden), prompts).view(count, -1)
        return self._base.logits(hidden if every else hidden[-rows:])

    def close(self) -> None:
        pass


Forward = CompiledForward | TorchForward


def make_forward(base: Base, threads: int) -> Forward:
    """The fastest forward pass for a base; threads: at most so many on a CPU."""
    if CompiledForward.suits(base):
        try:
            return CompiledForward(base, threads)
        except Exception as error:  # numba and LLVM raise nearly anything where they cannot compile
            log.warning("The layers cannot be compiled here, and torch computes them: %s", first_line(error))
    if getattr(base.model, "is_loaded_in_4bit", False) and base.device.type == "cpu":
        multiply_once(base.model.model, base.model.dtype)  # packed before several threads read them
    return TorchForward(base)
