"""Streams answers as chat messages."""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from PIL.Image import Image

from adapter.base.template import Message
from adapter.errors import BadInput, LoadError
from adapter.serve.request import Client, GenerationEvent, GenerationRequest, SamplingParams, TokenLogprobs
from adapter.serve.settings import MAX_TOKENS, SAMPLING, TOP_LOGPROBS, Settings
from adapter.server.generation import AdapterCatalog, EngineProvider, ServingEngine
from adapter.ui import conversation
from adapter.ui.conversation import AnswerRecord, Entry, History, Variant
from adapter.ui.images import open_upload
from adapter.ui.session import Change
from adapter.ui.status import REDRAW_SECONDS
from adapter.ui.texts import page as texts

XRAY_ROWS = 4  # with more rows the X-ray pauses: the base reads as much again as the row
# Values of an offer's buttons: answer without the picture, or USE + adapter name. No name begins with a space.
TEXT_ONLY, USE = " without", " use "


def uses_picture(catalog: AdapterCatalog, settings: Settings) -> bool:
    """Whether one of the selected adapters is visual and gets the picture. Raises LoadError."""
    return any(catalog.card(name).config.is_visual for name in settings.adapters)


def whole_answer(engine: ServingEngine, request: GenerationRequest) -> str:
    """The text of an answer that nobody sees before its end. Raises AdapterError."""
    with closing(engine.submit(request)) as events:
        return "".join(event.text for arrived in events.event_lists(REDRAW_SECONDS) for event in arrived)


def build_request(
    messages: tuple[Message, ...], settings: Settings, image: Image | None, client: Client, xray: bool = False
) -> GenerationRequest:
    """Raises BadInput."""
    if settings.mix and settings.mix == settings.adapter:
        raise BadInput(texts.mixed_with_itself(settings.mix))
    if settings.system:
        messages = (Message("system", settings.system), *messages)
    return GenerationRequest(
        messages=messages,
        adapter=settings.adapter or None,
        image=image,
        sampling=SamplingParams(max_new_tokens=settings.max_tokens, **settings.model_dump(include={*SAMPLING})),
        mix=((settings.mix, settings.mix_strength),) if settings.mix else (),
        end_repetition=True,
        client=client,
        base_logprobs=xray,
        top_logprobs=TOP_LOGPROBS if xray else 0,
        **settings.model_dump(include={"strength", "stop", "others"}),
    )


def xray_line(text: str, logprob: float, base: TokenLogprobs, own: Sequence[tuple[int, str, float]] = ()) -> str:
    """A token for xray.js: text, log-probability, the base's, the base's likeliest, its own likeliest with ids."""
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
    token_ids: list[int] = field(default_factory=list)  # with those of the beginning that it goes on from
    rate: float | None = None  # tokens/s; None until it has ended
    xray: list[str] = field(default_factory=list)  # a line for each token that the frozen base has read
    _written: list[GenerationEvent] = field(default_factory=list)  # by token

    def note_unused_picture(self, has_picture: bool, visual: bool) -> None:
        if visual != has_picture:
            self.notes.append(texts.NO_IMAGE if visual else texts.PICTURE_NOT_USED)

    def add(self, event: GenerationEvent) -> None:
        self.text += event.text
        if event.token_id is not None:
            self.token_ids.append(event.token_id)
            self._written.append(event)
        for base in event.base_logprobs:
            token = self._written[len(self.xray)]
            own = () if token.choices is None else token.choices.top
            self.xray.append(xray_line(token.text, token.logprob or 0.0, base, own))
        if event.stats is not None:
            self.rate = event.stats.tokens_per_s or None
            self.notes += texts.ENDINGS[event.finish_reason]

    def stats_line(self) -> str:
        """`adapter · strength · tokens · tokens/s · notes`; the frozen base has no strength."""
        settings, parts = self.settings, [texts.BASE_NAME]
        if settings.adapter:
            parts = [settings.adapter, texts.strength(settings.strength)]
        if settings.mix:
            parts.append(texts.mixed_in(settings.mix, settings.mix_strength))
        parts.append(texts.tokens(len(self.token_ids)))
        if self.rate is not None:
            parts.append(texts.rate(self.rate))
        return " · ".join([*parts, *self.notes])


@dataclass(frozen=True)
class Turn:
    """A question that is answered. history: that ends with it; message: in the box, if it comes from there.
    variants: earlier answers to the same question, which are kept beside the new one. begun: the one that it goes
    on from, with its settings but for the number of tokens. offers: whether a picture that the adapter cannot see
    leads to an offer, not to an answer. switch_to: an adapter to switch to, if it is there.
    """

    history: History
    message: dict[str, Any] | None = None
    variants: tuple[Variant, ...] = ()
    begun: Entry | None = None
    offers: bool = True
    switch_to: str = ""

    @property
    def waiting(self) -> History:
        begun = [] if self.begun is None else [Entry("assistant", self.begun.text)]
        return [*self.history, *begun, Entry("page", "…", pending=True)]


def offer_of(catalog: AdapterCatalog, history: History, settings: Settings) -> Entry | None:
    """An offer of visual adapters if those of `settings` cannot see the last turn's picture."""
    turn = conversation.last_turn(history)
    if turn is None or turn.picture is None or uses_picture(catalog, settings):
        return None
    visual = []
    for name in catalog.names():
        with suppress(LoadError):  # of a card that cannot be read
            visual += [name] if catalog.card(name).config.is_visual else []
    choices = [(texts.use_for_picture(name), USE + name) for name in visual[:3]]
    text = texts.reads_text_only(settings.adapter or None, bool(visual))
    return Entry("page", text, options=(*choices, (texts.WITHOUT_PICTURE, TEXT_ONLY)))


def _adapter_answers(catalog: AdapterCatalog, settings: Settings, history: History) -> bool | None:
    """True: the adapter answers, as always at first after a picture, and where it is not a visual one alone.
    False: the base does, from what the adapter said of it. None: the base says CANNOT_TELL.
    """
    alone = settings.adapter and settings.strength and not settings.mix
    vision = catalog.card(settings.adapter).config.vision if alone else None
    since = history[conversation.picture_index(history) :]
    given = [one.record.settings.answerer if one.record else None for one in since if one.role == "assistant"]
    if vision is None or not {None, settings.adapter} & {*given}:  # a visitor's has no record
        return True
    return vision.asks_to_look(history[-1].text)


def stream(
    provider: EngineProvider,
    catalog: AdapterCatalog,
    turn: Turn,
    change: Change,
    settings: Settings,
    client: Client,
    xray: bool = False,
) -> Iterator[History]:
    """Yields the history with more and more of the answer. xray: with what the base gives it, unless many run."""
    history, begun = turn.history, turn.begun
    if former := begun.record if begun else None:
        settings, xray = former.settings.replace(max_tokens=settings.max_tokens), False
    adapter_answers = former is not None or _adapter_answers(catalog, settings, history)
    if not adapter_answers:  # the base answers, from what the adapter has said of the picture before
        others = settings.others.replace("nothing", "first sentence")
        settings = settings.replace(adapter="", others=others)
    settings, begun_ids = with_seed(settings), former.token_ids if former else ()
    visual, picture = uses_picture(catalog, settings), conversation.latest_picture(history)
    progress = AnswerProgress(settings, token_ids=list(begun_ids))
    progress.note_unused_picture(picture is not None, visual)
    image = open_upload(picture) if visual and picture else None
    engine = provider.engine()
    assert engine is not None
    replicas = engine.replicas().values()
    context_length = min([engine.base.context_length, *(r.cache_capacity for r in replicas)])
    xray = xray and sum(r.running + r.waiting for r in replicas) < XRAY_ROWS * max(1, len(replicas))
    request = build_request(conversation.to_messages(history), settings, image, client, xray)
    form = None if adapter_answers is not None else f'start: "{texts.CANNOT_TELL}"'
    with closing(engine.submit(replace(request, answer_ids=begun_ids, form=form))) as events:
        change.cancel = events.cancel
        if change.stopped:
            events.cancel()
        for arrived in events.event_lists(REDRAW_SECONDS):
            for event in arrived:
                if event.is_output:
                    progress.add(event)
            text, writing = progress.text or (begun.text if begun else ""), event.stats is None
            # Of a cut answer max_tokens is its length: these settings write it again, unless a word was chosen.
            longest = settings.max_tokens if event.finish_reason == "stop" else 1
            used = settings.replace(max_tokens=min(max(longest, len(progress.token_ids)), MAX_TOKENS))
            ids, cut = tuple(progress.token_ids), event.finish_reason in (None, "length", "time", "cancelled")
            record = AnswerRecord(used, ids, image is not None, cut, before=turn.variants)
            if event.stats is not None:
                tokens = event.stats.prompt_tokens + event.stats.new_tokens
                record = replace(record, context_tokens=tokens, context_length=context_length).fitted()
            if text.strip():
                about, lines = progress.stats_line(), "\n".join(progress.xray)
                yield [*history, Entry("assistant", text, about=about, record=record, xray=lines, pending=writing)]
            elif event.finish_reason == "cancelled":
                yield [*history, Entry("page", texts.STOPPED_BEFORE_TEXT)]
            elif not writing:
                yield [*history, Entry("page", texts.EMPTY_ANSWER, about=progress.stats_line(), record=record)]
            elif not event.is_output:
                waiting = texts.before_answer(event.position, event.progress)
                yield [*history, Entry("page", waiting, record=record, pending=True)]
