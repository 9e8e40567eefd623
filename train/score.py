"""Answers and likelihoods of the served base, with or without an adapter, for the scores on an adapter's card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from adapter.base.llama import Base
from adapter.base.template import Message, default_template, encode_answer, encode_prompt
from adapter.method.adapter import Adapter
from adapter.method.vision import VisualFeatures
from train.input.batches import stack_features
from train.loop import batch_prompts

Conversation = tuple[Message, ...]
_BATCH_ROWS = 16


@dataclass(frozen=True)
class Answerer:
    """The base with one adapter, or bare. Decodes greedily, in batches; the bare base ignores features."""

    base: Base
    adapter: Adapter | None

    def generate(
        self,
        conversations: Sequence[Conversation],
        features: Sequence[VisualFeatures | None] | None = None,
        max_new_tokens: int = 96,
    ) -> list[str]:
        """The answer to each conversation."""
        tokenizer = self.base.tokenizer
        prompts = [encode_prompt(tokenizer, c, self._template) for c in conversations]
        answers = [""] * len(prompts)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(prompts), _BATCH_ROWS):
            chosen = by_length[start : start + _BATCH_ROWS]
            width = max(len(prompts[i]) for i in chosen)
            ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in chosen])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
            device = self.base.device
            output = self.base.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                **self._prompts([features[i] for i in chosen] if features else [None] * len(chosen)),
            )
            for i, row in zip(chosen, output[:, width:], strict=True):
                answers[i] = tokenizer.decode(row, skip_special_tokens=True)
        return answers

    @torch.no_grad()
    def nll(
        self,
        conversations: Sequence[Conversation],
        answers: Sequence[str],
        features: Sequence[VisualFeatures | None] | None = None,
    ) -> list[float]:
        """Mean negative log-likelihood per token, in nats, of each given answer."""
        tokenizer = self.base.tokenizer
        results = [0.0] * len(answers)
        rows = []
        for i, (conversation, answer) in enumerate(zip(conversations, answers, strict=True)):
            prompt = encode_prompt(tokenizer, conversation, self._template)
            target = encode_answer(tokenizer, answer, self._template)
            rows.append((prompt + target, len(prompt), i))
        rows.sort(key=lambda row: len(row[0]))
        for start in range(0, len(rows), _BATCH_ROWS):
            chosen = rows[start : start + _BATCH_ROWS]
            width = max(len(ids) for ids, _, _ in chosen)
            # Right-padded, which needs no mask under causal attention.
            batch = torch.tensor([ids + [0] * (width - len(ids)) for ids, _, _ in chosen])
            row_features = [features[i] for _, _, i in chosen] if features else [None] * len(chosen)
            hidden = self.base.model.model(
                input_ids=batch.to(self.base.device), use_cache=False, **self._prompts(row_features)
            ).last_hidden_state
            for row, (ids, begin, i) in enumerate(chosen):
                logits = self.base.model.lm_head(hidden[row, begin - 1 : len(ids) - 1])
                target_ids = torch.tensor(ids[begin:], device=logits.device)
                results[i] = F.cross_entropy(logits.float(), target_ids).item()
        return results

    @property
    def _template(self) -> str:
        return default_template(self.base.tokenizer) if self.adapter is None else self.adapter.config.template

    @torch.no_grad()
    def _prompts(self, features: Sequence[VisualFeatures | None]) -> dict:
        """The prompt arguments of the forward pass for a batch of rows."""
        if self.adapter is None:
            return {}
        stacked, rows = stack_features(features if self.adapter.projection is not None else [])
        kv = batch_prompts(self.adapter, self.base.model, stacked, rows)
        return {"prompt_kv": kv, "prompt_rows": None if rows is None else rows.to(self.base.device)}
