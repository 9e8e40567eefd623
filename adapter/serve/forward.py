"""The base's forward pass for serving: next tokens of several rows, each with its own KV cache and prompts.

Runs the base's own decoder layers. Knows tensors; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapter.base.kernels import prepare_rotation
from adapter.base.llama import Base
from adapter.base.quantize import PackedLinear
from adapter.method.attention import PromptKV
from adapter.serve.kv_cache import KVCache, Slot


class Forward:
    """The forward pass of one base for serving.

    On a packed base every token is a row of its own for products and attention alike, so that a prompt read in any
    chunks, an answer and a batch all give the same bits.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        linears = [m for m in base.model.model.layers.modules() if isinstance(m, (torch.nn.Linear, PackedLinear))]
        self._packed = all(isinstance(m, PackedLinear) for m in linears)
        self._layers: list[Any] = list(base.model.model.layers)

    @torch.inference_mode()
    def __call__(
        self,
        cache: KVCache,
        ids: Sequence[int],
        slots: Sequence[Slot],
        starts: Sequence[int],
        prompts: PromptKV | None,
    ) -> Tensor:
        """Read one new token for each of several rows, or several for one; their KV goes into `cache`.

        slots: of the rows, in ascending order; starts: how many tokens each slot holds; prompts: one entry a row,
        or None. Returns the logits after the last token of each row, [rows, vocab_size] in fp32.
        """
        device = self._base.device
        rows, count = len(starts), len(ids)
        assert rows in (1, count)
        step = cache.step(slots, starts, count // rows)
        positions = torch.tensor(starts, device=device)
        if rows < count:
            positions = positions + torch.arange(count, device=device)
        # Rows of their own: tokens [N, 1], masks [N, 1, 1, span]. Tokens of one row: [1, N], [1, 1, N, span].
        as_rows = self._packed or rows == count
        shape = (count, 1) if as_rows else (1, count)
        sizes = step.sizes if rows == count else [count]
        masks = []  # additive, one for each run of the cache
        for last, span in zip(positions.split(sizes), step.spans, strict=True):
            mask = torch.zeros(len(last), span, dtype=cache.data.dtype, device=device)
            mask.masked_fill_(torch.arange(span, device=device) > last[:, None], float("-inf"))
            masks.append(mask[:, None, None] if as_rows else mask[None, None])

        model = self._base.model.model
        hidden = model.embed_tokens(torch.tensor(ids, device=device).view(shape))
        rotation = model.rotary_emb(hidden, positions.view(shape))
        if self._packed:
            rotation = prepare_rotation(*rotation)
        for layer in self._layers:
            hidden = layer.forward(hidden, masks, rotation, step, prompts)
        hidden = model.final_norm(hidden, prompts).view(count, -1)
        return self._base.model.lm_head(hidden[-rows:]).float()
