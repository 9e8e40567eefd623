"""Streams answers as chat messages."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adapter.base.template import Message
from adapter.errors import BadInput, LoadError
from adapter.serve.settings import MAX_TOKENS, Settings
from adapter.server.generation import AdapterCatalog, EngineProvider
from adapter.ui import conversation
from adapter.ui.conversation import AnswerRecord, Entry, History, Variant
from adapter.ui.images import open_upload, shrink_upload
from adapter.ui.session import Change
from adapter.ui.status import REDRAW_SECONDS
from adapter.ui.texts import page as texts
from adapter.ui.theme import ExampleCard

if TYPE_CHECKING:
    from PIL.Image import Image

    from adapter.serve.request import Client, GenerationEvent, GenerationRequest, TokenLogprob, TokenLogprobs
    from adapter.server.generation import ServingEngine

CHOICES = 5  # words that X-ray names of each model
XRAY_ROWS = 4  # with more rows the X-ray pauses: it costs its row 15 to 30 % of the speed
_SECONDS = 1.0  # between two looks at an answer that is shown as a whole
TEXT_ONLY = " "  # the option "without the picture" of an offer; not a valid adapter name


def uses_picture(catalog: AdapterCatalog, settings: Settings) -> bool:
    """Whether one of the selected adapters is visual and gets the picture. Raises LoadError."""
    return any(catalog.card(name).is_visual for name in settings.adapters)


def whole_answer(engine: ServingEngine, request: GenerationRequest) -> str:
    """The text of an answer that nobody sees before its end. Raises AdapterError."""
    with closing(engine.submit(request)) as events:
        return "".join(event.text for arrived in events.event_lists(_SECONDS) for event in arrived)


def build_request(
    messages: tuple[Message, ...], settings: Settings, image: Image | None, client: Client, xray: bool = False
) -> GenerationRequest:
    """Raises BadInput."""
    from adapter.serve.request import GenerationRequest, SamplingParams

    if settings.mix and settings.mix == settings.adapter:
        raise BadInput(texts.mixed_with_itself(settings.mix))
    if settings.system:
        messages = (Message("system", settings.system), *messages)
    return GenerationRequest(
        messages=messages,
        adapter=settings.adapter or None,
        image=image,
        strength=settings.strength,
        sampling=SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_tokens,
            seed=settings.seed,
            top_k=settings.top_k,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
        ),
        mix=((settings.mix, settings.mix_strength),) if settings.mix else (),
        mute_layers=settings.mute_layers,
        mute_heads=settings.mute_heads,
        stop=settings.stop,
        others=settings.others,
        end_repetition=True,
        client=client,
        base_logprobs=xray,
        top_logprobs=CHOICES if xray else 0,
    )


def xray_line(text: str, logprob: float, base: TokenLogprobs, own: Sequence[TokenLogprob] = ()) -> str:
    """A token for xray.js: its text, its log-probability and the frozen base's, and the likeliest tokens there: of
    the base, and of the model that answers, with their ids.
    """
    top = [[other, round(value, 3)] for _, other, value in base.top]
    choices = [[other, round(value, 3), id] for id, other, value in own]
    return json.dumps([text, round(logprob, 3), round(base.logprob, 3), top, choices])


def with_seed(settings: Settings) -> Settings:
    """The settings with a random seed where none was chosen, so that the answer can be reproduced."""
    return settings if settings.seed is not None else settings.replace(seed=secrets.randbelow(2**31))


@dataclass
class AnswerProgress:
    """An answer while it is being written: its text, tokens and speed, and the notes in its statistics line."""

    settings: Settings
    notes: list[str] = field(default_factory=list)
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    tokens: int = 0
    rate: float | None = None  # tokens/s; None for the first few tokens
    first_time: float = 0.0
    first_tokens: int = 0  # that came in one list with the first
    begun_tokens: int = 0  # of the beginning that it goes on from
    xray: list[str] = field(default_factory=list)  # a line for each token that the frozen base has read
    _written: list[GenerationEvent] = field(default_factory=list)  # by token

    def note_unused_picture(self, has_picture: bool, visual: bool) -> None:
        if visual != has_picture:
            self.notes.append(texts.NO_IMAGE if visual else texts.PICTURE_NOT_USED)

    def add(self, event: GenerationEvent) -> None:
        now = time.monotonic()
        self.first_time = self.first_time or now
        self.text += event.text
        if event.token_id is not None:
            self.token_ids.append(event.token_id)
            self._written.append(event)
        self.tokens, seconds = len(self.token_ids), now - self.first_time
        if seconds < REDRAW_SECONDS / 2:
            self.first_tokens = self.tokens
        elif self.tokens > 4:
            self.rate = (self.tokens - self.first_tokens) / seconds
        for base in event.base_logprobs:
            token = self._written[len(self.xray)]
            own = () if token.choices is None else token.choices.top
            self.xray.append(xray_line(token.text, token.logprob or 0.0, base, own))
        if event.stats is not None:
            self.tokens = self.begun_tokens + event.stats.new_tokens
            self.rate = event.stats.tokens_per_s or None
            self.notes += texts.ENDINGS[event.finish_reason]

    def stats_line(self) -> str:
        return conversation.stats_line(self.settings, self.tokens, self.rate, self.notes)


@dataclass(frozen=True)
class Turn:
    """A question that is answered. history: that ends with it; message: in the box, if it comes from there.

    variants: earlier answers to the same question, which are kept beside the new one. begun: the one that it goes
    on from, with its settings but for the number of tokens. offers: whether a picture that the adapter cannot see
    leads to an offer, not to an answer. switch_to: an adapter to switch to; called when the model is loaded,
    because the catalog is empty before.
    """

    history: History
    message: dict[str, Any] | None = None
    variants: tuple[Variant, ...] = ()
    begun: Variant | None = None
    offers: bool = True
    switch_to: Callable[[], str | None] | None = None


class ChatAnswers:
    """Answers to a conversation that ends in a user turn. Thread-safe."""

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog) -> None:
        self.provider = provider
        self.catalog = catalog

    def offer(self, history: History, settings: Settings) -> Entry | None:
        """An offer of visual adapters if those of `settings` cannot see the last turn's picture."""
        turn = conversation.last_turn(history)
        if turn is None or turn.picture is None or uses_picture(self.catalog, settings):
            return None
        visual = self._names(visual=True)
        choices = [(texts.use_for_picture(name), name) for name in visual[:3]]
        text = texts.reads_text_only(settings.adapter or None, bool(visual))
        return conversation.offer(text, [*choices, (texts.WITHOUT_PICTURE, TEXT_ONLY)])

    def stream(
        self, turn: Turn, change: Change, settings: Settings, client: Client, xray: bool = False
    ) -> Iterator[History]:
        """Yields the history of the turn with more and more of its answer.

        xray: with what the frozen base gives its tokens, unless many are answered.
        """
        history, begun = turn.history, turn.begun
        former = None if begun is None else conversation.parse_record(begun.record)
        begun_ids = () if former is None else former.token_ids
        if former is not None:
            settings, xray = former.settings.replace(max_tokens=settings.max_tokens), False
        visual, picture = uses_picture(self.catalog, settings), conversation.latest_picture(history)
        progress = AnswerProgress(settings := with_seed(settings), token_ids=list(begun_ids))
        progress.begun_tokens = progress.first_tokens = len(begun_ids)
        progress.note_unused_picture(picture is not None, visual)
        image = open_upload(picture) if visual and picture else None
        engine = self.provider.engine()
        assert engine is not None
        xray = xray and sum(replica.running for replica in engine.replicas().values()) < XRAY_ROWS
        request = build_request(conversation.to_messages(history), settings, image, client, xray)
        request = replace(request, answer_ids=begun_ids)
        progress.notes += [texts.MUTED] if settings.mute_layers or settings.mute_heads else []
        with closing(engine.submit(request)) as events:
            change.cancel = events.cancel
            if change.stopped:
                events.cancel()
            for arrived in events.event_lists(REDRAW_SECONDS):
                for event in arrived:
                    if event.is_output:
                        progress.add(event)
                text = progress.text or (begun.text if begun else "")
                message = conversation.note(texts.EMPTY_ANSWER)
                if text.strip():
                    message = conversation.answer(text, "\n".join(progress.xray))
                # max_tokens is the present length, so that the recorded settings reproduce exactly this text.
                truncated = settings.replace(max_tokens=min(max(1, len(progress.token_ids)), MAX_TOKENS))
                if event.finish_reason == "cancelled" and not text.strip():
                    yield [*history, conversation.note(texts.STOPPED_BEFORE_TEXT)]
                elif event.stats is not None:
                    ended = event.finish_reason in ("cancelled", "time", "repetition") or begun is not None
                    answered = AnswerRecord(
                        truncated if ended else settings,
                        tuple(progress.token_ids),
                        image is not None,
                        event.finish_reason in ("length", "time", "cancelled"),
                        event.stats.prompt_tokens + event.stats.new_tokens,
                        engine.base.context_length,
                        turn.variants,
                    )
                    line = conversation.stats(progress.stats_line(), record=answered.to_json())
                    yield [*history, message, line]
                elif text.strip():
                    so_far = conversation.settings_json(truncated)
                    line = conversation.stats(progress.stats_line(), live=True, record=so_far)
                    yield [*history, message, line]
                elif not event.is_output:
                    waiting = texts.before_answer(event.position, event.progress)
                    yield [*history, conversation.note(waiting, waiting=True)]

    def adapter_for(self, example: ExampleCard) -> str | None:
        """The adapter that demonstrates an example; None keeps the selected one."""
        names = self._names(visual=example.picture is not None)
        if example.adapter in names:
            return example.adapter
        return next(iter(names), None) if example.picture else None

    def _names(self, visual: bool) -> list[str]:
        """Adapters of one kind whose card can be read."""
        names = []
        for name in self.catalog.names():
            try:
                if self.catalog.card(name).is_visual == visual:
                    names.append(name)
            except LoadError:
                continue
        return names


def with_small_picture(history: History) -> History:
    """The history with the last turn's picture in its small form. Raises BadPicture."""
    turn = conversation.last_turn(history)
    if turn is None or turn.picture is None:
        return history
    small = shrink_upload(turn.picture)
    return [*history[: turn.start], *conversation.replace_pictures(history[turn.start :], small)]
