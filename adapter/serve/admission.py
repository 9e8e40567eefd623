"""What is known of a request before its turn comes: its adapters, its tokens, and room for an answer.

Knows requests, adapters and the base's limits; knows nothing of queues and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapter.base.llama import Base
from adapter.base.template import encode_prompt
from adapter.errors import BadInput
from adapter.method.adapter import Adapter
from adapter.serve.request import GenerationRequest

Named = list[tuple[Adapter, float]]


class Adapters(Protocol):
    """Where adapters come from: adapter.serve.store.AdapterStore is one."""

    def load(self, name: str, base: Base) -> Adapter: ...


@dataclass(frozen=True)
class Admitted:
    """adapters: those that do something, with their strengths; ids: the prompt; limit: tokens of the answer."""

    adapters: Named
    ids: list[int]
    limit: int


def admit(request: GenerationRequest, base: Base, load: Callable[[str], Adapter]) -> Admitted:
    """Raises BadInput or LoadError for a request that cannot be answered on `base`. load: adapters by name."""
    named = named_adapters(request, load)
    if request.image is not None and not see(named):
        which = f"Adapter '{request.adapter}'" if request.adapter else "The frozen base"
        raise BadInput(f"{which} reads text only. Choose an adapter that reads images.")
    ids = _prompt_ids(request, base, named)
    room = base.context_length - len(ids)
    if room < 1:
        raise BadInput(
            f"The conversation has {len(ids)} tokens and this base reads {base.context_length}. "
            "Shorten the message or start a new conversation."
        )
    adapters = [(adapter, strength) for adapter, strength in named if strength > 0]
    return Admitted(adapters, ids, min(room, request.sampling.max_new_tokens))


def named_adapters(request: GenerationRequest, load: Callable[[str], Adapter]) -> Named:
    """Every adapter of the request with its strength. Raises LoadError."""
    return [(load(name), strength) for name, strength in request.parts]


def see(named: Sequence[tuple[Adapter, float]]) -> bool:
    """Whether one of the adapters reads images."""
    return any(adapter.config.is_visual for adapter, _ in named)


def _prompt_ids(request: GenerationRequest, base: Base, named: Named) -> list[int]:
    if request.prompt_ids is not None:
        vocabulary = base.fingerprint.vocab_size
        if not request.prompt_ids or not all(0 <= i < vocabulary for i in request.prompt_ids):
            raise BadInput(f"Prompt ids must be numbers from 0 to {vocabulary - 1}, and at least one.")
        return list(request.prompt_ids)
    if request.raw:
        template = "raw"
    elif named:
        template = named[0][0].config.template
    else:
        template = "chat" if base.tokenizer.chat_template else "alpaca"
    return encode_prompt(base.tokenizer, request.messages, template)
