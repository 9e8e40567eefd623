"""Event handlers of the chat, and the endpoints of gradio_client. An event names its conversation by id."""

import json
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.serve.request import Client
from adapter.serve.settings import BASE_ONLY, PAGE_PENALTY, PANEL, Settings
from adapter.server.generation import AdapterCatalog, EngineProvider, check_length, client_of, wait_for
from adapter.ui import conversation, theme
from adapter.ui.answer_stream import TEXT_ONLY, USE, Turn, build_request, offer_of, stream, uses_picture, xray_line
from adapter.ui.chat.chatbot import entry_at, unescape_markup
from adapter.ui.chat.conversation_store import PICKERS, ConversationStore, Updates
from adapter.ui.chat.corrections import add_correction
from adapter.ui.conversation import Entry, History
from adapter.ui.gradio_internals import sent
from adapter.ui.images import BadPicture, open_upload, read_upload, shrink, write_upload
from adapter.ui.inside.panel import inspect_newest
from adapter.ui.session import Change, Conversation, Forgotten, NotOpen, StillAnswering
from adapter.ui.status import FRAME_SECONDS, MODEL, REDRAW_SECONDS
from adapter.ui.texts import page as texts
from adapter.ui.theme import ExampleCard
from adapter.ui.toasts import errors_as_toasts, readable, refusal, toast

# Least time between two saves of a growing answer in the browser: the larger of seconds and bytes / rate.
KEEP_SECONDS, KEEP_BYTES_PER_SECOND = 2.0, 100_000
_NO_CHANGE = Updates()


class HistoryEdit(NamedTuple):
    """What a conversation is changed to at once, and what else is updated: fields of Updates."""

    history: History
    updates: dict[str, Any]


Asked = Turn | HistoryEdit | None
Ask = Callable[[Conversation], Asked]  # of what is shown. Raises BadInput
Box = dict[str, Any] | None  # what a message box holds


def read_message(message: Box) -> tuple[str, str | None] | None:
    """The text and the picture's path in a message box; None, after a toast, if it is empty. Raises BadInput."""
    message = message or {}
    text, files = (message.get("text") or "").strip(), message.get("files") or []
    if not text and not files:
        toast(texts.NOTHING_TO_SEND, 4)
        return None
    check_length(text)
    if len(files) > 1:
        toast(texts.ONE_PICTURE)
    return text or texts.DEFAULT_QUESTION, files[0] if files else None


class ChatEvents:
    """The event handlers of one page. Thread-safe. `settings`: the side panel's values by their names."""

    def __init__(self, examples: list[ExampleCard], store: ConversationStore) -> None:
        self.examples, self.store = examples, store
        self.provider, self.catalog, self.conversations = store.provider, store.catalog, store.conversations

    def send(
        self, message: Box, id: str, known: object, event: gr.EventData, request: gr.Request, **settings: Any
    ) -> Iterator[Updates]:
        """Answers the message in the box, or what the event's data say was pressed. known: the corrections."""
        data = sent(event)
        index, value = data.get("index"), data.get("value")
        kept = None if data else message  # what the box holds if nothing comes of it
        if not data:

            def ask(shown: Conversation) -> Asked:
                content = read_message(message)
                return content and Turn([*shown.history, *conversation.user_turn(*content)], message)

        elif "previous_value" in data:
            ask = partial(_edited, row=index, value=value, before=data["previous_value"], known=known)
            written = (message or {}).get("text") or ""
            if str(value).strip() != str(data["previous_value"]).strip():  # else nothing would be lost
                kept = {**(message or {}), "text": f"{unescape_markup(str(value))}\n\n{written}".strip()}
        elif "token" in data:
            ask = partial(self._branch, index=index, token=data["token"])
        elif isinstance(value, dict) and "text" in value:
            ask = partial(self._example, index=index)
        elif isinstance(value, str) and value.startswith(" "):  # no message begins so
            ask = partial(_chosen, choice=value)
        else:
            ask = partial(_retried, row=index)
        yield from self._turn(ask, id, request, settings, kept, "previous_value" in data)

    def _branch(self, shown: Conversation, index: object, token: object) -> Asked:
        """Writes the newest answer anew up to a word, with another word there, as a further variant."""
        record, engine = conversation.last_record(shown.history), self.provider.engine()
        if record is None or engine is None or type(index) is not int or type(token) is not int:
            return None
        if not (0 <= index < len(record.token_ids) and 0 <= token < engine.base.fingerprint.vocab_size):
            return None
        begun = replace(record, token_ids=(*record.token_ids[:index], token), before=(), after=())
        asked, others = conversation.without_last_answer(shown.history), conversation.variants(shown.history)
        return Turn(asked, variants=others, begun=Entry("assistant", record=begun), offers=False)

    def _example(self, shown: Conversation, index: object) -> Asked:
        if not isinstance(index, int) or not 0 <= index < len(self.examples):
            return None
        example = self.examples[index]
        asked = [*shown.history, *conversation.user_turn(example.text, example.picture)]
        return Turn(asked, switch_to=example.adapter)

    def follow(self, id: str, request: gr.Request, **settings: Any) -> Iterator[Updates]:
        """Goes on with an answer that is being written, once the page that showed it has left."""
        with suppress(Forgotten, NotOpen):
            missed = self.conversations.shown(request.session_hash, id).change is not None
            with suppress(NotOpen), self.conversations.taken_over(request.session_hash, id) as change:
                yield from self._read(Turn(change.shown), change, settings)
                return
            shown = self.conversations.shown(request.session_hash, id)  # another page may have read it to its end
            yield (partial(self.store.keep, begins=False) if missed else self.store.show)(shown, shown.newest)
            return
        yield _NO_CHANGE

    def undo(self, draft: Box, id: str, event: gr.EventData, request: gr.Request) -> Updates:
        """Moves the last turn back into the message box, before what is written there."""

        def ask(shown: Conversation) -> Asked:
            turn = conversation.last_turn(shown.history)
            if turn is None or not _is_last_question(shown, sent(event).get("index")):
                return None
            text, files, box = turn.text.strip(), [turn.picture] if turn.picture else [], draft or {}
            written, others = (box.get("text") or "").strip(), box.get("files") or []
            before, pictures = shown.undone
            if before and f"{written}\n\n".startswith(f"{before}\n\n"):  # Undo has put it there
                written, others = written.removeprefix(before).strip(), others[pictures:]
            shown.undone = text, len(files)
            value = {"text": f"{text}\n\n{written}".strip(), "files": files + others}
            return HistoryEdit(shown.history[: turn.start], {"box": {**theme.SUBMIT, "value": value}})

        (updates,) = self._turn(ask, id, request, {})
        return updates

    def stop(self, id: str, request: gr.Request) -> Updates:
        with suppress(Forgotten, NotOpen):
            if (shown := self.conversations.stop(request.session_hash, id)) is not None:
                return self.store.show(shown)._replace(box=theme.SUBMIT)  # the page has missed the end
        return _NO_CHANGE

    def xray(self, on: bool, id: str, request: gr.Request) -> Any:
        """Adds to the newest answer what the frozen base gives its tokens, if it was written without. An update of
        the X-ray; none if the conversation goes on meanwhile, or the answer is the base's own.
        """
        history = self.conversations.history(request.session_hash, id)
        with errors_as_toasts("an X-ray"), suppress(StillAnswering, Forgotten, NotOpen):
            xrayed = self._xrayed(history, client_of(request)) if on else history
            with self.conversations.change(request.session_hash, id) as change:
                if change.conversation.history is history is not xrayed:
                    change.conversation.history = xrayed
                    return self.store.show(change.conversation).xray
        return gr.skip()

    def _xrayed(self, history: History, client: Client) -> History:
        """The history with what the frozen base gives the tokens of its newest answer. Raises AdapterError."""
        newest = max((i for i, entry in enumerate(history) if entry.about), default=0)
        by_base = newest and (made := history[newest].record) and not made.settings.adapters
        if newest < 1 or history[newest].xray or by_base:
            return history
        inspection = inspect_newest(self.provider, history, client).inspection
        tokens = zip(inspection.tokens, inspection.answer, inspection.base, strict=True)
        lines = "\n".join(xray_line(text, own.logprob, base, own.top) for text, own, base in tokens)
        return [*history[:newest], replace(history[newest], xray=lines), *history[newest + 1 :]]

    def _turn(
        self,
        ask: Ask,
        id: str,
        request: gr.Request,
        panel: dict[str, Any],
        message: Box = None,
        edits: bool = False,
    ) -> Iterator[Updates]:
        """Answers a question; on failure shows the error and what was before. message: for the box then."""
        box = gr.skip() if message is None else gr.update(value=message)
        try:
            with self.conversations.change(request.session_hash, id, message) as change:
                shown, asked = change.conversation, None
                with errors_as_toasts("a message"):
                    asked = ask(shown)
                if isinstance(asked, Turn):
                    change.updates, change.shown = self._answer(asked, change, request, panel), asked.waiting
                    change.rewrites = len(asked.history) <= len(shown.history)
                    yield from self._read(asked, change, panel, message)
                    return
                change.ended = True
                if asked is None:  # an edit is in the browser's chat already
                    yield self.store.show(shown)._replace(box=box if edits else gr.skip())
                else:
                    shown.history = asked.history
                    yield self.store.keep(shown)._replace(**asked.updates)
        except NotOpen:
            yield _NO_CHANGE
        except StillAnswering as error:
            toast(error)
            # The running answer empties the box. A message equal to the one it answers was sent twice: drop it.
            yield Updates(box=gr.skip() if message == error.answered else box)
        except Forgotten as error:
            toast(error)
            again = json.dumps({"open": secrets.token_hex(4)})  # only a text that differs is a change
            yield Updates(box=box, to_browser=again)

    def _read(self, turn: Turn, change: Change, panel: dict[str, Any], message: Box = None) -> Iterator[Updates]:
        """Shows an answer to its end, or until another page goes on with it. message: for the box, if it fails."""
        shown, session, switched = change.conversation, change.session, dict[str, Any]()
        box, due = theme.STOP if turn.message is None else {**theme.STOP, "value": {"text": "", "files": []}}, 0.0
        begins = turn.history is not change.shown  # else another page has begun it
        assert change.updates is not None
        with errors_as_toasts("a chat turn") as errors:
            show = self.store.show if change.rewrites else partial(self.store.keep, begins=begins)
            yield show(shown, change.shown)._replace(box=box)
            for update in change.updates:
                if isinstance(update, dict):
                    switched = update
                    yield Updates(**switched) if self.conversations.shows(session, shown.id) else _NO_CHANGE
                    time.sleep(FRAME_SECONDS)
                    continue
                change.shown = update
                if not self.conversations.shows(session, shown.id):
                    break
                if time.monotonic() < due or change.result is shown.history:
                    yield self.store.show(shown, update)
                else:
                    begins = begins and change.rewrites and not due
                    due = time.monotonic() + max(KEEP_SECONDS, shown.bytes / KEEP_BYTES_PER_SECOND)
                    # The button again: a page that is being loaded may lose the first one (Gradio 6.31). Not with
                    # every update: Gradio makes a new box for each.
                    yield self.store.keep(shown, update, begins)._replace(box=theme.STOP)
            stays = change.result is shown.history  # as it does after Stop before an edit's first word
            shown.history = change.result
        end = self._restored(message, switched, panel, errors) if errors or stays else {"box": theme.SUBMIT}
        if change.unread or not self.conversations.shows(session, shown.id):
            yield _NO_CHANGE
        else:
            change.ended = True
            yield self.store.keep(shown, begins=False)._replace(**end)

    def _answer(
        self, turn: Turn, change: Change, request: gr.Request, panel: dict[str, Any]
    ) -> Generator[History | dict[str, Any], None, None]:
        """Yields the history with more and more of the answer, and what changes in the side panel, by name."""
        settings = Settings.checked(panel)
        if conversation.size_of(turn.history) > conversation.MAX_HISTORY:  # a page that opens it is sent all of it
            turn = replace(turn, history=[replace(entry, xray="") for entry in turn.history])
            if conversation.size_of(turn.history) > conversation.MAX_HISTORY:
                raise BadInput(texts.TOO_LONG_TO_GO_ON)
        for status in wait_for(self.provider):
            if change.stopped:
                yield [*turn.history, Entry("page", texts.STOPPED_BEFORE_TEXT)]
                return
            yield [*turn.history, Entry("page", texts.waiting_for_model(status), pending=True)]
        if (last := conversation.last_turn(turn.history)) is not None and last.picture is not None:
            small = conversation.user_turn(last.text, write_upload(shrink(read_upload(last.picture))))
            turn = replace(turn, history=[*turn.history[: last.start], *small])
        if turn.switch_to in self.catalog.names():  # which are known now
            switched: dict[str, Any] = {"adapter": turn.switch_to}
            if turn.switch_to != settings.adapter:  # what was set for the one before does not follow
                others = Settings().others if settings.others == "all" else settings.others
                switched |= {"mix": BASE_ONLY, "strength": Settings().strength, "others": others}
                if settings.mix:
                    toast(texts.not_taken_along(settings.mix), 6)
            settings = settings.replace(**switched)
            yield switched
        if turn.offers and (offer := offer_of(self.catalog, turn.history, settings)):
            yield [*turn.history, offer]
            return
        xray, client = panel.get("xray") is True, client_of(request)
        for history in stream(self.provider, self.catalog, turn, change, settings, client, xray):
            yield history
        if xray and turn.begun is not None:  # whose beginning was not read by the base
            with suppress(AdapterError):
                time.sleep(FRAME_SECONDS)
                yield self._xrayed(history, client)
                time.sleep(FRAME_SECONDS)

    def _restored(
        self, message: Box, switched: dict[str, Any], panel: dict[str, Any], errors: list[Any]
    ) -> dict[str, Any]:
        """Puts the message of a turn that came to nothing back, and what it has changed in the side panel."""
        value = {} if message is None else {"value": message}
        if message is not None and errors and isinstance(errors[0], BadPicture):  # the text alone can be sent
            value = {"value": {**message, "files": []}}
        names = self.catalog.names()
        before = {name: panel.get(name, gr.skip()) for name in switched}
        missing = {name: BASE_ONLY for name in PICKERS if name in before and before[name] not in names}
        return {"box": {**theme.SUBMIT, **value}, **before, **missing}


def _is_last_question(shown: Conversation, row: object) -> bool:
    """Whether this row of a page is the last question; not where the page shows an older state."""
    return entry_at(shown.view, row) == len(conversation.without_last_answer(shown.history)) - 1


def _retried(shown: Conversation, row: object) -> Asked:
    asked, known = conversation.without_last_answer(shown.history), conversation.variants(shown.history)
    return Turn(asked, variants=known, offers=not known) if asked and _is_last_question(shown, row) else None


def _edited(shown: Conversation, row: object, value: object, before: object, known: object) -> Asked:
    """A question of the visitor that was edited; or an answer, in whose place their words stand from now on."""
    history, index = shown.history, entry_at(shown.view, row)
    text, before = (unescape_markup(str(one)).strip() for one in (value, before))
    role = history[index].role if index >= 0 else "page"
    answers_nothing = role == "assistant" and not conversation.to_messages(history[:index])
    if role == "page" or before == text != "" or answers_nothing:
        return None
    if before and before != history[index].text.strip():
        return None  # the page shows an older state of the conversation
    if not text:
        raise BadInput(texts.EMPTY_EDIT if role == "user" else texts.EMPTY_CORRECTION)
    check_length(text)
    if role == "user":
        return Turn([*history[:index], *conversation.user_turn(text)])
    about, updates = texts.YOUR_WORDS if history[index].about else "", {}
    with errors_as_toasts("a correction"):  # one about a picture is not collected
        updates = {"corrections": add_correction(known, history, index, text)}
    corrected = Entry("assistant", text, about=about)  # it has no record any more
    return HistoryEdit([*history[:index], corrected, *history[index + 1 :]], updates)


def _chosen(shown: Conversation, choice: str) -> Asked:
    """What a button below the last message begins."""
    history = shown.history
    record = conversation.last_record(history)
    if choice in (conversation.PREVIOUS, conversation.NEXT):
        return HistoryEdit(conversation.with_variant(history, 1 if choice == conversation.NEXT else -1), {})
    if choice == conversation.CONTINUE and record is not None and record.cut:
        begun = replace(history[-1], record=replace(record, before=(), after=()))
        asked, others = conversation.without_last_answer(history), (*record.before, *record.after)
        return Turn(asked, variants=others, begun=begun, offers=False)
    if choice not in [value for _, value in (history[-1].options if history else ())]:
        return None
    if choice == TEXT_ONLY:
        return Turn(history[:-1], offers=False)
    return Turn(history[:-1], switch_to=choice.removeprefix(USE))


def add_api_endpoint(provider: EngineProvider, catalog: AdapterCatalog) -> None:
    """Adds /chat. gradio_client prints names, types and descriptions as the manual."""
    default = Settings()

    def chat(
        message: str,
        request: gr.Request,
        image: dict[str, Any] | None = None,
        adapter: str | None = None,
        strength: float = default.strength,
        temperature: float = default.temperature,
        top_p: float = default.top_p,
        max_tokens: int = default.max_tokens,
        seed: int | None = None,
        mix: str | None = None,
        mix_strength: float = default.mix_strength,
        top_k: int = default.top_k,
        min_p: float = default.min_p,
        repetition_penalty: float = PAGE_PENALTY,
        stop: str | None = None,
        system: str | None = None,
    ) -> Iterator[str]:
        values = {name: value for name, value in locals().items() if name in PANEL}
        try:
            for name in ("adapter", "mix", "stop"):
                values[name] = value.strip() if isinstance(value := values[name] or "", str) else value
            if not isinstance(message, str) or not message.strip():
                raise BadInput(texts.EMPTY_MESSAGE)
            path = image.get("path") if isinstance(image, dict) else None
            if image is not None and not isinstance(path, str):
                raise BadInput(texts.WRONG_VALUE)
            check_length(message)
            for _ in wait_for(provider):
                pass
            settings = Settings.checked(values)
            if path and not uses_picture(catalog, settings):
                raise BadInput(texts.image_not_seen(settings.adapter or texts.BASE_NAME))
            picture = open_upload(path) if path is not None else None
            asked = build_request((Message("user", message),), settings, picture, client_of(request))
            engine, text = provider.engine(), ""
            assert engine is not None
            with closing(engine.submit(asked)) as events:
                for arrived in events.event_lists(REDRAW_SECONDS):
                    if new := "".join(event.text for event in arrived):
                        text += new
                        yield text
            yield text
        except Exception as error:
            raise refusal(readable(error, "an API call")) from None

    gr.api(chat, api_name="chat", api_description=texts.API_CHAT, **MODEL)
