"""Inspection of an answer: what each of its tokens owes to the prompts, to the adapter and to the image."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from adapter.base.llama import Base
from adapter.errors import BadInput, Busy, Closing
from adapter.method.adapter import Adapter
from adapter.method.attention import LayerPrompts, PromptKV, attend
from adapter.serve.detokenizer import Detokenizer, TokenTexts
from adapter.serve.prompts import GREY, PromptKVBuilder
from adapter.serve.request import GenerationRequest, TokenLogprobs
from adapter.serve.sampling import check_finite
from adapter.serve.settings import TOP_LOGPROBS

MAX_INSPECTED_TOKENS = 2048  # of prompt and answer together
MAX_WAITING = 8  # inspections that wait or run
_LOGITS_CHUNK = 64  # positions whose logits are held at a time: a vocabulary is wide


@dataclass(frozen=True)
class AdapterInspection:
    """The part of one adapter with L insertion layers, H heads and K prompts in an answer of T tokens."""

    layers: tuple[int, ...]
    gates: Tensor  # [L, H], strength * act(g) as applied
    prompt_weights: Tensor  # [T, L, K], sums to 1: softmax over the prompts, mean over heads weighted by |gate|


@dataclass(frozen=True)
class Inspection:
    """What is known of an answer of T tokens that was given with one adapter or several mixed ones.

    All tensors are fp32 on the CPU, log-probabilities in nats. A token's numbers are those of the position before
    it, where it was sampled.
    """

    tokens: tuple[str, ...]  # the text that each token completed; empty for an end token and half a character
    parts: tuple[AdapterInspection, ...]  # each adapter in order; all other fields are of all adapters together
    answer: tuple[TokenLogprobs, ...]  # as answered: with the adapters, and with the image if there is one
    base: tuple[TokenLogprobs, ...]  # what the frozen base gives each token
    no_image: tuple[TokenLogprobs, ...] | None = None  # without the image, beside text adapters with a grey one

    @cached_property
    def influence(self) -> Tensor:
        """[T]: log p with the adapters minus log p of the frozen base, in nats."""
        return self.logprobs - _as_tensor(self.base)

    @cached_property
    def logprobs(self) -> Tensor:
        """[T], as answered."""
        return _as_tensor(self.answer)

    @cached_property
    def grounding(self) -> Tensor | None:
        """[T]: log p with the image minus log p without, in nats; None if there is no image."""
        return None if self.no_image is None else self.logprobs - _as_tensor(self.no_image)


def _as_tensor(tokens: Sequence[TokenLogprobs]) -> Tensor:
    return torch.tensor([one.logprob for one in tokens])


class Inspector:
    """Inspects answers one at a time in its callers' threads, beside the engine's worker."""

    def __init__(self, base: Base, prompts: PromptKVBuilder) -> None:
        self._base, self._prompts = base, prompts
        self._places = threading.BoundedSemaphore(MAX_WAITING)
        # Two, because closing waits for what runs, and not for an encoder that is downloaded.
        self._building, self._running = threading.Lock(), threading.Lock()
        self._closed = False

    def inspect(
        self,
        adapters: Sequence[tuple[Adapter, float]],
        request: GenerationRequest,
        prompt_ids: Sequence[int],
        answer_ids: Sequence[int],
    ) -> Inspection:
        """Wait for the inspection of an answer. Raises BadInput, or Busy if too many wait or this is closed."""
        limit = min(MAX_INSPECTED_TOKENS, self._base.context_length)
        if (count := len(prompt_ids) + len(answer_ids)) > limit:
            text = f"Conversation and answer have {count} tokens; answers within {limit} can be looked into."
            raise BadInput(f"{text} Start a new conversation.")

        def prompts(image: Image.Image | None) -> PromptKV:
            built = self._prompts.build(adapters, image, request.gates)
            if built is None:
                raise BadInput("The frozen base has no prompts to look into. Ask with an adapter.")
            return built.mixed()

        if not self._places.acquire(blocking=False):
            raise Busy(f"{MAX_WAITING} answers are being looked into already. Try again in a minute.")
        try:
            with self._building if request.image is not None else nullcontext():  # for which an encoder may load
                whole = prompts(request.image)
                reads = any(strength and not adapter.config.is_visual for adapter, strength in adapters)
                no_image = None if request.image is None else prompts(GREY if reads else None)
            loaded = [adapter for adapter, _ in adapters]
            top = request.top_logprobs or TOP_LOGPROBS
            with self._running:
                if self._closed:
                    raise Closing()
                return inspect_answer(self._base, loaded, prompt_ids, answer_ids, whole, no_image, top)
        finally:
            self._places.release()

    def close(self) -> None:
        """Wait for the running inspection; the waiting ones end with Busy."""
        self._closed = True
        with self._running:
            pass


def inspect_answer(
    base: Base,
    adapters: Sequence[Adapter],
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    prompts: PromptKV,
    no_image: PromptKV | None = None,
    top: int = TOP_LOGPROBS,
) -> Inspection:
    """Inspect an answer that was given with `prompts`, one entry. no_image: the same without the image, if there
    was one; top: how many likeliest tokens are named. Raises as `_logits`.
    """
    owners = {layer: [i for i, a in enumerate(adapters) if layer in a.config.layers] for layer in prompts.layers}
    seen: dict[tuple[int, int], Tensor] = {}  # attention to the prompts by adapter and layer: [T, K]

    def record(layer: int, query: Tensor, terms: tuple[LayerPrompts, ...], scaling: float) -> None:
        """query: [1, H, tokens, head_dim]; the answer's are the last."""
        query = query[:, :, -len(answer_ids) :].float()  # [1, H, T, head_dim]
        for owner, term in zip(owners[layer], terms, strict=False):  # the last terms may belong to none
            keys, gates = term.keys.float(), term.gates[0].float()  # of the only entry, which has no mask; [H]
            identity = torch.eye(keys.shape[2]).to(query).expand(*keys.shape[:2], -1, -1)
            by_head = attend(query, keys, identity, None, scaling)[0].transpose(0, 1)  # [H, T, K]
            head_weights = gates.abs() if gates.any() else torch.ones_like(gates)
            seen[owner, layer] = torch.einsum("h,htk->tk", head_weights / head_weights.sum(), by_head).cpu()

    texts = TokenTexts(base.tokenizer)

    def ranked(prompt_kv: PromptKV | None) -> tuple[TokenLogprobs, ...]:
        chunks = _logits(base, prompt_ids, answer_ids, prompt_kv)
        return tuple(one for logits, ids in chunks for one in token_logprobs(texts, logits, ids.tolist(), top))

    # All passes have the same shape, so that what makes no difference is exactly 0.
    answer = ranked(replace(prompts, observer=record))
    parts = []
    for index, adapter in enumerate(adapters):
        layers, length = tuple(adapter.config.layers), adapter.config.prompt_length
        terms = [prompts.layers[layer][owners[layer].index(index)] for layer in layers]
        gates = torch.stack([term.gates[0].float().cpu() for term in terms])
        weights = torch.stack([seen[index, layer][:, :length] for layer in layers], dim=1)
        parts.append(AdapterInspection(layers, gates, weights))
    detokenizer = Detokenizer(base.tokenizer)
    *written, last = (detokenizer.push(i) for i in answer_ids)
    return Inspection(
        tokens=(*written, last + detokenizer.flush()),
        parts=tuple(parts),
        answer=answer,
        base=ranked(None),
        no_image=None if no_image is None else ranked(no_image),
    )


@torch.no_grad()
def _logits(
    base: Base, prompt_ids: Sequence[int], answer_ids: Sequence[int], prompt_kv: PromptKV | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits in fp32 and the token chosen by them, of some places of the answer at a time. Raises BadInput for an
    empty answer or unknown ids, FloatingPointError if numbers overflow.
    """
    ids, length = [*prompt_ids, *answer_ids], len(answer_ids)
    vocabulary = base.fingerprint.vocab_size
    if not prompt_ids or not answer_ids:
        raise BadInput("There is no answer to look into. Ask something first.")
    if not all(0 <= i < vocabulary for i in ids):
        raise BadInput(f"Token ids must be numbers from 0 to {vocabulary - 1}.")
    tokens = torch.tensor([ids], device=base.device)
    output = base.model.model(input_ids=tokens[:, :-1], use_cache=False, prompt_kv=prompt_kv)
    hidden = output.last_hidden_state[0, -length:]  # [T, hidden_size]
    for states, chosen in zip(hidden.split(_LOGITS_CHUNK), tokens[0, -length:].split(_LOGITS_CHUNK), strict=True):
        logits = base.logits(states)
        check_finite(logits)
        yield logits, chosen


def token_logprobs(texts: TokenTexts, logits: Tensor, ids: Sequence[int], count: int) -> tuple[TokenLogprobs, ...]:
    """Log-probabilities of the tokens `ids`, one a row of logits [T, vocab_size], and of the likeliest `count`."""
    total, top = logits.logsumexp(-1, keepdim=True), logits.topk(min(count, logits.shape[1]))
    index = torch.tensor(ids, dtype=torch.long, device=logits.device)[:, None]
    chosen = (logits.gather(1, index) - total)[:, 0].tolist()
    rows = zip(ids, chosen, top.indices.tolist(), (top.values - total).tolist(), strict=True)
    return tuple(
        TokenLogprobs(texts.logprob(token, logprob), tuple(map(texts.logprob, *best)))
        for token, logprob, *best in rows
    )


def format_table(inspection: Inspection) -> str:
    """An inspection as text: for each token its numbers, and the likeliest with the adapters and of the base."""
    columns = {"influence": inspection.influence}
    if inspection.grounding is not None:
        columns["grounding"] = inspection.grounding
    columns["log p"] = inspection.logprobs
    table = [["token", *columns, "likeliest", "of the base"]]
    likeliest = (
        [", ".join(f"{token.text!r} {token.logprob:.2f}" for token in one.top) for one in given]
        for given in (inspection.answer, inspection.base)
    )
    numbers = ([f"{value:.2f}" for value in column.tolist()] for column in columns.values())
    table += map(list, zip(map(repr, inspection.tokens), *numbers, *likeliest, strict=True))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    return "\n".join([*lines, "", "influence: nats over the base"])
