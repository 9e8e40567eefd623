"""From a conversation that ends in a user's turn to the answer as it grows: what the chat shows meanwhile.

Knows the engine, the store and conversations as data; knows nothing of Gradio's updates and events.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import closing

from adapter.errors import LoadError
from adapter.serve.settings import Settings
from adapter.server.settings import REDRAW_SECONDS, EngineProvider, make_request, sees
from adapter.ui import conversation as talk
from adapter.ui import images as pictures
from adapter.ui.active_answers import Run
from adapter.ui.answer_record import Record, settings_text
from adapter.ui.conversation import History
from adapter.ui.texts import page as texts
from adapter.ui.theme import Cards, Example

TEXT_ONLY = " "  # an offer's value for "leave the picture aside"; no adapter can be called this


class Answers:
    """The answers of one page; safe for any number of sessions at once."""

    def __init__(self, provider: EngineProvider, store: Cards) -> None:
        self.provider = provider
        self.store = store

    def offered(self, history: History, settings: Settings) -> History | None:
        """The end of the history if the last turn's picture cannot be seen: an offer. None if there is no need."""
        turn = talk.last_turn(history)
        if turn is None or turn.picture is None or sees(self.store, settings):
            return None
        adapter, visual = settings.adapter or None, self._names(visual=True)
        choices = [(texts.use_for_picture(name), name) for name in visual[:3]]
        text = texts.reads_text_only(adapter, bool(visual))
        return [talk.offer(text, [*choices, (texts.WITHOUT_PICTURE, TEXT_ONLY)])]

    def stream(self, run: Run, history: History, settings: Settings, client: str) -> Iterator[History]:
        """The entries that follow the user's turn, again and again as they grow."""
        adapter, visual = settings.adapter or None, sees(self.store, settings)
        picture = talk.latest_picture(history)
        notes = []
        if visual and picture is None:
            notes.append(texts.NO_IMAGE)
        elif picture is not None and not visual:
            notes.append(texts.PICTURE_NOT_USED)
        # A seed of the page's own, so that the answer can be had again.
        if settings.seed is None:
            settings = settings.replace(seed=secrets.randbelow(2**31))
        request = make_request(history, settings, adapter, picture if visual else None, client)
        notes += texts.muted(request.mute_layers, request.mute_heads) if request.parts else ()
        engine = self.provider.engine()
        assert engine is not None

        def line(tokens: int, rate: float | None, *more: str) -> str:
            return talk.stats_line(adapter, settings.strength, tokens, rate, [*notes, *more], request.mix)

        text, first, drawn = "", 0.0, 0.0
        ids: list[int] = []
        with closing(engine.submit(request)) as events:
            run.cancel = events.cancel
            if run.stopped:
                events.cancel()
            for event in events:
                if event.position is not None:
                    yield [talk.note(texts.waiting(event.position), waiting=True)]
                    continue
                now = time.monotonic()
                text += event.text
                ids += [] if event.token_id is None else [event.token_id]
                tokens = len(ids)
                first = first or now
                rate = (tokens - 1) / (now - first) if tokens > 4 else None
                words = talk.answer(text) if text.strip() else talk.note(texts.EMPTY_ANSWER)
                # Cut where it stands, so that the settings give what is there and no more.
                cut = settings.replace(max_tokens=max(1, tokens))
                if event.finish_reason == "cancelled" and not text.strip():
                    yield [talk.note(texts.STOPPED_AT_ONCE)]
                elif event.stats is not None:
                    rate = event.stats.tokens_per_s or None
                    used = cut if event.finish_reason in ("cancelled", "time") else settings
                    record = Record(used, tuple(ids), request.image is not None).to_text()
                    ending = texts.ENDINGS[event.finish_reason]
                    yield [words, talk.stats(line(event.stats.new_tokens, rate, *ending), record=record)]
                elif text.strip() and now - drawn >= REDRAW_SECONDS:
                    drawn = now
                    yield [words, talk.stats(line(tokens, rate), live=True, record=settings_text(cut))]

    def adapter_of(self, example: Example) -> str | None:
        """The adapter that shows an example best; None leaves the chosen one."""
        names = self._names(visual=example.picture is not None)
        if example.adapter in names:
            return example.adapter
        return next(iter(names), None) if example.picture else None

    def _names(self, visual: bool) -> list[str]:
        """Adapters that load, of one kind. A broken one is named in the picker, not here."""
        found = []
        for name in self.store.names():
            try:
                if self.store.card(name).is_visual == visual:
                    found.append(name)
            except LoadError:
                continue
        return found


def with_small_picture(history: History) -> History:
    """The history with the last turn's picture in the form that is kept. Raises BadPicture."""
    turn = talk.last_turn(history)
    if turn is None or turn.picture is None:
        return history
    return [*history[: turn.start], *talk.with_picture(history[turn.start :], pictures.adopt(turn.picture))]
