"""The page without a browser: conversations as data, requests, loading, the command line, the API."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

import app
from adapter.base.template import Message
from adapter.errors import BadInput, Busy, LoadError
from adapter.serve.request import GenerationEvent, GenerationStats
from adapter.server import settings as requests
from adapter.server.loader import LazyStore, LoadStatus, ModelLoader
from adapter.ui import active_answers as runs
from adapter.ui import conversation as talk
from adapter.ui import theme as look
from adapter.ui.answer_stream import TEXT_ONLY
from adapter.ui.chat_events import ChatTurns
from tests.app_process import PATIENCE

ROOT = Path(__file__).parents[2]
DEFAULTS = ("", 1.0, 0.0, 1.0, 32, None)
ME = SimpleNamespace(session_hash="me")


@dataclass
class Card:
    name: str
    description: str = "what it does"
    is_visual: bool = False
    bytes: int = 621_000


class Shelf:
    """A store of two adapters; `gone` ones are unknown."""

    def __init__(self) -> None:
        self.cards = {"poet": Card("poet"), "see": Card("see", is_visual=True)}

    def names(self) -> list[str]:
        return sorted(self.cards)

    def card(self, name: str) -> Card:
        if name not in self.cards:
            raise LoadError(f"There is no adapter '{name}'. Choose one of: {', '.join(self.cards)}.")
        return self.cards[name]

    def card_text(self, name: str) -> str:
        return f"# {name}\n\n![x](http://far.away/x.png) <img src=x> as trained" if name == "poet" else ""


class Echo:
    """An engine that answers with what it was asked, three pieces at a time, and remembers the requests."""

    def __init__(self, error: Exception | None = None, waits: int = 0) -> None:
        self.requests: list[Any] = []
        self.closed = 0
        self.error = error
        self.waits = waits

    def submit(self, request: Any) -> EchoAnswer:
        self.requests.append(request)
        return EchoAnswer(self, request)


class EchoAnswer:
    def __init__(self, engine: Echo, request: Any) -> None:
        self.engine = engine
        self.cancelled = False
        self.events = self.script(request.messages[-1].text)

    def script(self, asked: str) -> Iterator[GenerationEvent]:
        for position in reversed(range(self.engine.waits)):
            yield GenerationEvent(position=position)
        for index, text in enumerate(["you said: ", asked, "!"]):
            if self.engine.error and index == 1:
                raise self.engine.error
            stats = GenerationStats(5, index + 1, 0.0, 0.0, 0.1)
            if self.cancelled:
                yield GenerationEvent(finish_reason="cancelled", stats=stats)
                return
            last = index == 2
            yield GenerationEvent(text, 7, -0.1, "stop" if last else None, stats if last else None)

    def __iter__(self) -> Iterator[GenerationEvent]:
        return self.events

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.engine.closed += 1


class Ready:
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def engine(self) -> Any:
        return self._engine

    def status(self) -> LoadStatus:
        return LoadStatus("ready", "ready")


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gradio's folder of what browsers sent, for this test alone."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def picture(uploads: Path) -> str:
    from PIL import Image

    path = uploads / "cat.png"
    Image.new("RGB", (8, 8), "white").save(path)
    return str(path)


def page_with(engine: Any) -> ChatTurns:
    return ChatTurns(Ready(engine), Shelf(), look.examples())


def texts(history: talk.History) -> list[str]:
    return [block.get("text", "<picture>") for entry in history for block in entry["content"]]


def last_history(updates: list[Any]) -> talk.History:
    return next(chat for chat, _, _ in reversed(updates) if isinstance(chat, list))


def asked(text: str, **files: Any) -> dict[str, Any]:
    return {"text": text, "files": [], **files}


# Conversations as data.


def test_only_words_reach_the_model() -> None:
    history = [
        *talk.user_turn("what is this?", "/tmp/cat.png"),
        talk.answer("a cat"),
        talk.stats("see · strength 1 · 3 tokens"),
        *talk.user_turn("and now?"),
        talk.offer("reads text only", [("Use see", "see")]),
        *talk.user_turn("never mind"),
        talk.note("…"),
    ]
    assert talk.to_messages(history) == (
        Message("user", "what is this?"),
        Message("assistant", "a cat"),
        Message("user", "and now?\n\nnever mind"),
    )


def test_newest_picture_is_the_active_one() -> None:
    history = [*talk.user_turn("a", "/tmp/1.png"), talk.answer("x"), *talk.user_turn("b", "/tmp/2.png")]
    assert talk.latest_picture(history) == "/tmp/2.png"
    assert talk.latest_picture([*history, talk.answer("y"), *talk.user_turn("c")]) == "/tmp/2.png"
    assert talk.latest_picture(talk.user_turn("c")) is None


def test_last_turn_holds_its_picture_and_no_older_one() -> None:
    with_picture = [*talk.user_turn("a"), talk.answer("x"), *talk.user_turn("b", "/tmp/2.png")]
    assert talk.last_turn(with_picture) == talk.Turn(2, "b", "/tmp/2.png")
    later = [*with_picture, talk.answer("y"), talk.stats("s"), *talk.user_turn("c")]
    assert talk.last_turn(later) == talk.Turn(6, "c", None)
    assert talk.last_turn([]) is None
    assert talk.without_answer(later[:6]) == with_picture


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("pirate", 1.0, 12, 31.44), "pirate · strength 1 · 12 tokens · 31 tokens/s"),
        (("see", 0.35, 1, None, ["no image"]), "see · strength 0.35 · 1 token · no image"),
        ((None, 1.0, 2, 8.26), "frozen base · 2 tokens · 8.3 tokens/s"),
    ],
)
def test_line_under_an_answer(arguments: tuple[Any, ...], line: str) -> None:
    assert talk.stats_line(*arguments) == line


def test_page_lines_are_inert() -> None:
    shown = texts([talk.stats("<img src=x>_a_*b*")])[0]
    assert shown.startswith('<span class="aside stats">') and shown.endswith("</span>")
    assert not set("<*_") & set(shown[len('<span class="aside stats">') : -len("</span>")])


def test_stop_marks_what_is_there() -> None:
    line = talk.stats_line("a_b", 1.0, 4, 20.0)
    kept = talk.stopped([*talk.user_turn("hi"), talk.answer("Hello"), talk.stats(line)])
    assert texts(kept)[:2] == ["hi", "Hello"] and "stopped" in texts(kept)[2]
    again = talk.stopped([*talk.user_turn("hi"), talk.note("…")])
    assert "first word" in texts(again)[1]
    assert talk.to_messages(again) == (Message("user", "hi"),)
    assert talk.stopped([]) == []


# Turns.


def test_send_streams_and_closes(toasts: list[str]) -> None:
    engine = Echo()
    updates = list(page_with(engine).send(asked(" hello "), [], ME, *DEFAULTS))
    assert texts(last_history(updates)) == [
        "hello",
        "you said: hello!",
        texts([talk.stats("frozen base · 3 tokens · 20 tokens/s")])[0],
    ]
    assert updates[0][1]["value"] == asked("") and updates[0][1]["stop_btn"] is True
    assert updates[-1][1]["submit_btn"] is True
    assert engine.closed == 1 and not toasts
    request = engine.requests[0]
    assert request.messages == (Message("user", "hello"),)
    assert (request.adapter, request.strength, request.sampling.max_new_tokens) == (None, 1.0, 32)


def test_leaving_closes_the_stream() -> None:
    engine = Echo()
    updates = page_with(engine).send(asked("hello"), [], ME, *DEFAULTS)
    for chat, _, _ in updates:
        if "you said: " in texts(chat):
            break
    updates.close()
    assert engine.closed == 1


def test_one_answer_at_a_time_in_a_session(toasts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ENDING_SECONDS", 0.05)
    page = page_with(Echo())
    first = page.send(asked("one"), [], ME, *DEFAULTS)
    next(first)
    assert list(page.send(asked("two"), [], ME, *DEFAULTS)) == [(gr.skip(), gr.skip(), gr.skip())]
    assert len(toasts) == 1 and "still being written" in toasts[0]
    somebody_else = SimpleNamespace(session_hash="you")
    assert len(list(page.send(asked("three"), [], somebody_else, *DEFAULTS))) > 1
    first.close()
    assert len(list(page.send(asked("two"), [], ME, *DEFAULTS))) > 1


def test_history_from_the_middle_of_an_answer_is_refused_while_that_lasts(toasts: list[str]) -> None:
    page = page_with(Echo())
    first = page.send(asked("one"), [], ME, *DEFAULTS)
    middle = next(chat for chat, _, _ in first if isinstance(chat, list) and len(chat) > 2)
    assert talk.being_answered(middle)
    assert list(page.send(asked("two"), middle, ME, *DEFAULTS)) == [(gr.skip(), gr.skip(), gr.skip())]
    final = last_history(list(first))
    assert not talk.being_answered(final) and len(toasts) == 1
    assert len(list(page.send(asked("two"), final, ME, *DEFAULTS))) > 1


def test_stop_ends_the_run_with_what_is_there() -> None:
    engine = Echo()
    page = page_with(engine)
    updates = page.send(asked("hello"), [], ME, *DEFAULTS)
    next(chat for chat, _, _ in updates if "you said: " in texts(chat))
    assert page.stop([], ME) == (gr.skip(), gr.skip())
    rest = list(updates)
    assert texts(last_history(rest))[:2] == ["hello", "you said: "]
    assert "stopped" in texts(last_history(rest))[2] and rest[-1][1]["submit_btn"] is True
    assert engine.closed == 1
    # Without a run, its server having been started anew, the page is mended.
    lost = [*talk.user_turn("hi"), talk.answer("Hel"), talk.stats("x", live=True)]
    history, box = page.stop(lost, ME)
    assert not talk.being_answered(history) and box["submit_btn"] is True


def test_who_waits_is_told_how_many_are_before(toasts: list[str]) -> None:
    updates = list(page_with(Echo(waits=3)).send(asked("hello"), [], ME, *DEFAULTS))
    said = [texts(chat)[-1] for chat, _, _ in updates if isinstance(chat, list)]
    assert "2 before you" in said[1] and "1 before you" in said[2] and "You are next" in said[3]
    assert texts(last_history(updates))[1] == "you said: hello!" and not toasts


def test_clear_ends_the_run_and_nothing_comes_back() -> None:
    page = page_with(Echo())
    updates = page.send(asked("hello"), [], ME, *DEFAULTS)
    next(updates)
    page.clear(ME)
    assert last_history(list(updates)) == []


def test_picture_goes_to_the_adapter_that_sees(picture: str) -> None:
    engine = Echo()
    page = page_with(engine)
    first = list(page.send(asked("", files=[picture]), [], ME, "see", *DEFAULTS[1:]))
    history = last_history(first)
    assert texts(history)[:2] == ["<picture>", "What is in this picture?"]
    assert engine.requests[0].image.size == (8, 8)
    again = list(page.send(asked("really?"), history, ME, "see", *DEFAULTS[1:]))
    assert engine.requests[1].image is not None
    assert [m.role for m in engine.requests[1].messages] == ["user", "assistant", "user"]
    text_only = list(page.send(asked("and you?"), last_history(again), ME, "poet", *DEFAULTS[1:]))
    assert engine.requests[2].image is None
    assert "picture not used" in texts(last_history(text_only))[-1]


def test_adapter_that_sees_says_when_there_is_nothing_to_see() -> None:
    updates = list(page_with(Echo()).send(asked("hi"), [], ME, "see", *DEFAULTS[1:]))
    assert "no image" in texts(last_history(updates))[-1]


def test_picture_for_a_text_adapter_is_offered_to_the_other(picture: str) -> None:
    engine = Echo()
    page = page_with(engine)
    history = last_history(list(page.send(asked("what?", files=[picture]), [], ME, "poet", *DEFAULTS[1:])))
    assert not engine.requests and "reads text only" in texts(history)[-1]
    assert [option["value"] for option in history[-1]["options"]] == ["see", TEXT_ONLY]

    chosen = SimpleNamespace(value="see", index=0)
    updates = list(page.choose(history, chosen, ME, "poet", *DEFAULTS[1:]))  # type: ignore[arg-type]
    assert any(isinstance(u[2], dict) and u[2].get("value") == "see" for u in updates)
    assert engine.requests[0].adapter == "see" and engine.requests[0].image is not None

    chosen = SimpleNamespace(value=TEXT_ONLY, index=1)
    updates = list(page.choose(history, chosen, ME, "poet", *DEFAULTS[1:]))  # type: ignore[arg-type]
    assert engine.requests[1].adapter == "poet" and engine.requests[1].image is None
    assert "picture not used" in texts(last_history(updates))[-1]


def test_edit_keeps_the_picture_and_forgets_what_followed(picture: str) -> None:
    engine = Echo()
    page = page_with(engine)
    history = last_history(list(page.send(asked("what?", files=[picture]), [], ME, "see", *DEFAULTS[1:])))
    event = SimpleNamespace(index=1, value="who?", previous_value="what?")
    updates = list(page.edit(history, event, ME, "see", *DEFAULTS[1:]))  # type: ignore[arg-type]
    assert texts(last_history(updates))[:3] == ["<picture>", "who?", "you said: who?!"]
    assert engine.requests[1].image is not None


def test_undo_gives_the_message_back(picture: str) -> None:
    page = page_with(Echo())
    history = last_history(list(page.send(asked("what?", files=[picture]), [], ME, "see", *DEFAULTS[1:])))
    rest, box = page.undo(history)
    assert rest == [] and box["value"]["text"] == "what?"
    assert [Path(file).name for file in box["value"]["files"]] == ["picture.png"]


def failing_sends(picture: str) -> list[tuple[Any, dict[str, Any], tuple[Any, ...], str]]:
    return [
        (Echo(), asked("x" * 100_000), DEFAULTS, "100,000 characters"),
        (Echo(), asked("hi"), ("nobody", *DEFAULTS[1:]), "no adapter 'nobody'"),
        (Echo(), asked("hi"), ("", 3.0, *DEFAULTS[2:]), "Strength"),
        (Echo(), asked("hi"), ("", 1.0, -1, *DEFAULTS[3:]), "Temperature"),
        (Echo(), asked("hi"), (*DEFAULTS[:5], 1.5), "whole number"),
        (Echo(), asked("hi"), (*DEFAULTS[:4], None, None), "need a number"),
        (Echo(Busy("The queue is full. Try again.")), asked("hi"), DEFAULTS, "queue is full"),
        (Echo(BadInput("The conversation has 9000 tokens.")), asked("hi"), DEFAULTS, "9000 tokens"),
        (Echo(RuntimeError("secret /home/me/x.py")), asked("hi"), DEFAULTS, "went wrong on the server"),
    ]


@pytest.mark.parametrize("case", range(9))
def test_failure_is_a_toast_and_everything_stays(case: int, picture: str, toasts: list[str]) -> None:
    engine, message, values, words = failing_sends(picture)[case]
    history = [*talk.user_turn("before"), talk.answer("yes")]
    updates = list(page_with(engine).send(message, history, ME, *values))
    assert len(toasts) == 1 and words in toasts[0] and "secret" not in toasts[0]
    boxes = [box for _, box, _ in updates if isinstance(box, dict) and "value" in box]
    assert not boxes or boxes[-1]["value"] == message
    chats = [chat for chat, _, _ in updates if isinstance(chat, list)]
    assert not chats or chats[-1] == history


def test_unreadable_picture_leaves_the_words(uploads: Path, toasts: list[str]) -> None:
    fake = uploads / "cat.png"
    fake.write_text("not a picture")
    for adapter in ("see", "poet"):
        toasts.clear()
        updates = list(page_with(Echo()).send(asked("what?", files=[str(fake)]), [], ME, adapter, *DEFAULTS[1:]))
        assert len(toasts) == 1 and str(uploads) not in toasts[0]
        assert last_history(updates) == []
        assert updates[-1][1]["value"] == asked("what?")


def test_empty_message_changes_nothing(toasts: list[str]) -> None:
    updates = list(page_with(Echo()).send(asked("  "), talk.user_turn("a"), ME, *DEFAULTS))
    assert len(toasts) == 1 and updates == [(gr.skip(), gr.skip(), gr.skip())]


def test_forged_events_change_nothing() -> None:
    page, history = page_with(Echo()), talk.user_turn("a")
    forged = [
        page.edit(history, SimpleNamespace(index=99, value="x", previous_value=""), ME, *DEFAULTS),  # type: ignore[arg-type]
        page.choose(history, SimpleNamespace(value="see", index=0), ME, *DEFAULTS),  # type: ignore[arg-type]
        page.example(history, SimpleNamespace(index=99, value={}), ME, *DEFAULTS),  # type: ignore[arg-type]
        page.retry([], ME, *DEFAULTS),
    ]
    for updates in forged:
        assert list(updates) == [(gr.skip(), gr.skip(), gr.skip())]


# Words for a browser.


def test_folders_of_this_machine_stay_here() -> None:
    error = LoadError("Adapter 'a': /home/me/adapters/a/config.json is not JSON; see https://a.example/b/c. <b>")
    assert requests.public_text(error) == (
        "Adapter 'a': config.json is not JSON; see https://a.example/b/c. &lt;b&gt;"
    )
    kept = "Load the base it names: huggyllama/llama-7b, 3/4 done, text/image."
    assert requests.without_folders(kept) == kept


def test_picker_says_what_an_adapter_is() -> None:
    shelf = Shelf()
    shelf.cards["poet"].description = "rhymes " * 40
    labels = {value: label for label, value in look.picker_choices(shelf)}
    assert list(labels) == ["", "poet", "see"]
    assert labels[""].startswith("None (frozen base)\n")
    assert labels["see"].splitlines() == ["see", "what it does", "Sees pictures · 621 kB"]
    assert len(labels["poet"].splitlines()[1]) <= 110


def test_examples_are_there_to_send() -> None:
    shown = look.examples()
    assert [example.picture is not None for example in shown] == [False, False, True, True]
    assert all(Path(example.picture).is_file() for example in shown if example.picture)
    page = page_with(Echo())
    assert page._answers.adapter_of(shown[2]) == "see"
    assert page._answers.adapter_of(shown[1]) is None  # "pirate" is not on this shelf: the chosen one stays


# Loading.


def test_loader_reports_and_then_has_the_engine() -> None:
    go = threading.Event()

    def load(report: Any) -> tuple[Any, str]:
        report("Converting")
        assert go.wait(PATIENCE)
        return "engine", "a base on a device"

    loader = ModelLoader(load)
    loader.start()
    lines = requests.wait_for(loader)
    assert next(lines).startswith(("Converting", "Loading"))
    go.set()
    list(lines)
    assert loader.engine() == "engine" and loader.status() == LoadStatus("ready", "a base on a device")


@pytest.mark.parametrize(
    ("error", "words"),
    [(LoadError("No space left. Free some."), "Free some"), (ValueError("x"), "log says why")],
)
def test_failed_loading_is_said_to_whoever_waits(error: Exception, words: str) -> None:
    def load(report: Any) -> tuple[Any, str]:
        raise error

    loader = ModelLoader(load)
    loader.start()
    with pytest.raises(LoadError, match=words):
        list(requests.wait_for(loader))


def test_lazy_store_is_empty_until_bound() -> None:
    store = LazyStore()
    assert store.names() == []
    with pytest.raises(Busy):
        store.card("see")
    store.bind(Shelf())  # type: ignore[arg-type]
    assert store.names() == ["poet", "see"]


# The command line.


def test_page_builds_with_documented_endpoints() -> None:
    page = app.build_page(Ready(Echo()), Shelf())
    assert {"/chat", "/adapters"} == set(page.get_api_info()["named_endpoints"])
    assert page.api_open is False


@pytest.mark.parametrize("argv", [["--auth", "me"], ["--auth", ":x"], ["--port", "0"], ["--quantization", "2"]])
def test_command_line_refuses(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        app.parse(argv)


def test_taken_port_is_one_line_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(port) in said and "--port" in said


# The whole program, as `make demo` starts it, asked by another program.


@pytest.mark.slow
def test_program_answers_gradio_client(url: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False)
    question = {"message": "Name three colours.", "temperature": 0, "max_tokens": 40}
    pieces = list(client.submit(**question, api_name="/chat"))
    assert len(pieces) > 2 and pieces[-1].startswith(pieces[0])
    assert pieces[-1] == client.predict(**question, api_name="/chat")
    cards = client.predict(api_name="/adapters")
    assert [card["name"] for card in cards] == sorted(card["name"] for card in cards)
    for wrong, words in [
        ({"message": " "}, "empty"),
        ({"message": "hi", "adapter": "nobody"}, "nobody"),
        ({"message": "hi", "strength": 7}, "Strength"),
        ({"message": "x" * 100_000}, "100,000"),
    ]:
        with pytest.raises(AppError, match=words):
            client.predict(**wrong, api_name="/chat")
    assert client.predict(**question, api_name="/chat")  # it still lives


def test_a_card_is_shown_and_loads_nothing_from_anywhere():
    store = Shelf()
    shown = look.about(store, "poet")
    assert shown.startswith("### poet") and "as trained" in shown
    assert "![" not in shown and "<img" not in shown
    assert "without a card" in look.about(store, "see")
    assert "frozen base" in look.about(store, "")
    assert "without a card" in look.about(store, "gone")
