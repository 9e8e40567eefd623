"""Greedy answers and likelihoods of a base, with an adapter at a strength or bare.

Answers come from the serving engine, likelihoods from one forward pass in batches: in bfloat16 the two differ by
rounding.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from adapter.base.encoder import load_encoder
from adapter.base.image_file import open_image
from adapter.base.llama import Base
from adapter.base.template import Message, default_template, encode_answer, encode_prompt
from adapter.errors import AdapterError, BadInput
from adapter.method.adapter import Adapter
from adapter.method.vision import VisualEncoder, VisualFeatures
from adapter.serve.engine import Engine
from adapter.serve.form import NO_FORM
from adapter.serve.request import Answer, GenerationRequest
from adapter.serve.sampling import SamplingParams, check_finite
from adapter.serve.settings import MAX_TOKENS
from train.formats.record import Picture, picture_source
from train.input.batches import stack_features
from train.input.rows import IGNORED
from train.loop import batch_prompts

Conversation = tuple[Message, ...]
Features = Sequence[VisualFeatures | None]
_BATCH_ROWS, _BATCH_TOKENS = 16, 4096  # at most, of one forward pass
_HEAD_POSITIONS = 256  # whose logits are held at a time: a vocabulary is wide
_SUBMITTED = 48  # requests in the engine at a time, which refuses more than 64
_ENCODED_TOGETHER = 32  # pictures, on a GPU
_NAME = "adapter"


class TokenScores(NamedTuple):
    """Of one row's labelled tokens in order: log-probabilities in nats, and whether each is the likeliest."""

    logprobs: Tensor
    greedy: Tensor


@dataclass(frozen=True)
class Answerer:
    """The base with one adapter at a strength, or bare. Pictures are for visual adapters; others ignore them.

    told: turns before each conversation. form: that answers are held to; None: the adapter's own, as in serving.
    """

    base: Base
    adapter: Adapter | None = None
    strength: float = 1.0
    told: Conversation = ()
    form: str | None = NO_FORM

    @property
    def template(self) -> str:
        """The adapter's, or the one that the bare base is served with."""
        return default_template(self.base.tokenizer) if self.adapter is None else self.adapter.config.template

    @property
    def is_visual(self) -> bool:
        return self.adapter is not None and self.adapter.config.is_visual

    def load(self, name: str, *_: object) -> Adapter:
        """The adapter, for the engine."""
        assert name == _NAME and self.adapter is not None
        return self.adapter

    # Answers.

    def generate(
        self,
        conversations: Sequence[Conversation],
        pictures: Sequence[Picture | None] | None = None,
        max_new_tokens: int = 96,
        prompts: Sequence[Sequence[int]] | None = None,
        stop: tuple[str, ...] = (),
        places: Sequence[str] = (),
    ) -> list[str]:
        """The greedy answer to each conversation. pictures: that the users show. prompts: their token ids. places:
        of the conversations, for errors.

        Raises BadInput for a file that is no picture, and for a prompt that the context cannot hold.
        """
        if max_new_tokens > MAX_TOKENS:
            tqdm.write(f"answers are cut at {MAX_TOKENS:,} tokens instead of {max_new_tokens:,}", file=sys.stderr)
        prompts = [self.encode(c) for c in conversations] if prompts is None else prompts
        texts, most = [""] * len(prompts), max(map(len, prompts), default=0)
        # The longest one first: if it does not fit, that is said before the others are answered.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) < most)
        with closing(Engine(self.base, self, self._encoders)) as engine:
            answers: deque[tuple[int, Answer]] = deque()

            def take() -> None:
                i, answer = answers.popleft()
                texts[i] = _whole(answer)

            for i in tqdm(order, "answers", disable=None, leave=False):
                if len(answers) == _SUBMITTED:
                    take()
                picture = pictures[i] if pictures and self.is_visual else None
                try:
                    request = GenerationRequest(
                        messages=conversations[i],
                        prompt_ids=tuple(prompts[i]),
                        adapter=None if self.adapter is None else _NAME,
                        strength=self.strength,
                        image=None if picture is None else open_image(picture_source(picture)),
                        sampling=SamplingParams(temperature=0, max_new_tokens=max_new_tokens),
                        stop=stop,
                        form=self.form,
                    )
                    answers.append((i, engine.submit(request)))
                except BadInput as error:
                    raise BadInput(f"{places[i] if places else f'Item {i + 1}'}: {error}") from error
            while answers:
                take()
        return texts

    # Likelihoods.

    def nll(
        self, conversations: Sequence[Conversation], answers: Sequence[str], features: Features | None = None
    ) -> list[float]:
        """Mean negative log-likelihood per token, in nats, of each given answer and its end."""
        ids, labels = [], []
        for conversation, answer in zip(conversations, answers, strict=True):
            prompt, target = self.encode(conversation), encode_answer(self.base.tokenizer, answer, self.template)
            ids.append(prompt + target)
            labels.append([IGNORED] * len(prompt) + target)
        return [-scores.logprobs.mean().item() for scores in self.token_scores(ids, labels, features)]

    @torch.no_grad()
    def token_scores(
        self, ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], features: Features | None = None
    ) -> list[TokenScores]:
        """Scores of the tokens of each row that have a label, given those before them."""
        results = [TokenScores(torch.empty(0), torch.empty(0, dtype=torch.bool))] * len(ids)
        for chosen in _batches([len(row) for row in ids]):
            hidden = self._hidden([ids[i] for i in chosen], features and [features[i] for i in chosen])
            for row, i in enumerate(chosen):
                targets = torch.tensor(labels[i][1:], device=hidden.device)
                scored = targets != IGNORED
                states, targets = hidden[row, : len(targets)][scored], targets[scored]
                pairs = zip(states.split(_HEAD_POSITIONS), targets.split(_HEAD_POSITIONS), strict=True)
                pieces = [_scores(self._logits(part), wanted) for part, wanted in pairs]
                if pieces:
                    results[i] = TokenScores(*map(torch.cat, zip(*pieces, strict=True)))
        return results

    @torch.no_grad()
    def next_logprobs(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], features: Features | None = None
    ) -> Tensor:
        """Log-probabilities of `tokens` as the next one of each prompt: [prompts, tokens], in nats, on the CPU."""
        wanted = torch.tensor(tokens, device=self.base.device)
        result = torch.empty(len(prompts), len(tokens))
        for chosen in _batches([len(prompt) for prompt in prompts]):
            hidden = self._hidden([prompts[i] for i in chosen], features and [features[i] for i in chosen])
            ends = torch.tensor([len(prompts[i]) - 1 for i in chosen], device=hidden.device)
            logits = self._logits(hidden[torch.arange(len(chosen), device=hidden.device), ends])
            result[chosen] = logits.log_softmax(-1)[:, wanted].cpu()
        return result

    def encode(self, conversation: Conversation) -> list[int]:
        """The tokens of a conversation up to where the answer begins."""
        return encode_prompt(self.base.tokenizer, (*self.told, *conversation), self.template)

    def features(self, pictures: Sequence[Picture | None]) -> list[VisualFeatures | None]:
        """Features of pictures for the adapter. Raises BadInput for a file that is no picture."""
        vision = None if self.adapter is None else self.adapter.config.vision
        if vision is None or not any(pictures):
            return [None] * len(pictures)
        encoder = self._encoders[vision.encoder]
        images = [open_image(picture_source(picture)) for picture in pictures if picture is not None]
        # One by one on a CPU, where together is hardly faster, for the bits that serving has.
        together = 1 if encoder.device.type == "cpu" else _ENCODED_TOGETHER
        encoded = encoder.encode(images, together, **vision.encoding)
        rows = iter(range(len(images)))
        return [None if picture is None else encoded[(i := next(rows)) : i + 1] for picture in pictures]

    @cached_property
    def _encoders(self) -> dict[str, VisualEncoder]:
        vision = None if self.adapter is None else self.adapter.config.vision
        return {} if vision is None else {vision.encoder: load_encoder(vision.encoder, self.base.device)}

    def _hidden(self, ids: Sequence[Sequence[int]], features: Features | None) -> Tensor:
        """The last hidden states, [rows, longest, hidden_size]. Causal attention hides the padding at the end."""
        width, most = max(map(len, ids)), self.base.context_length
        if width > most:
            raise BadInput(f"A text and its answer have {width} tokens, and this base reads {most}. Shorten it.")
        if max(max(row, default=0) for row in ids) >= self.base.fingerprint.vocab_size:
            raise BadInput("A text holds a token that this base does not have. Take it out.")
        batch = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=self.base.device)
        arguments = {}
        if self.adapter is not None:
            stacked, rows = stack_features(features if features and self.is_visual else [])
            kv = batch_prompts(
                self.adapter, self.base.model, None if stacked is None else stacked.to(self.base.device), rows
            )
            rows = None if rows is None else rows.to(self.base.device)
            arguments = {"prompt_kv": kv.scaled(self.strength), "prompt_rows": rows}
        return self.base.model.model(input_ids=batch, use_cache=False, **arguments).last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        """hidden: [P, hidden_size]. Returns [P, vocab_size] in fp32."""
        logits = self.base.logits(hidden)
        try:
            check_finite(logits)
        except FloatingPointError as error:
            raise BadInput(
                "The numbers overflow in this precision. Measure in another, such as bf16 or fp32, or at a lower "
                "strength."
            ) from error
        return logits


def _whole(answer: Answer) -> str:
    """The text of an answer. Raises AdapterError for one that was cut off by the clock, which would be scored."""
    events = list(answer)
    if events[-1].finish_reason == "time":
        raise AdapterError("An answer took more than ten minutes. Ask for shorter ones.")
    return "".join(event.text for event in events)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows in batches of similar length."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) == _BATCH_ROWS or (len(batch) + 1) * lengths[i] > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _scores(logits: Tensor, targets: Tensor) -> TokenScores:
    """logits: [P, vocab_size] in fp32; targets: [P]."""
    logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return TokenScores(logprobs.cpu(), (logits.argmax(-1) == targets).cpu())
