"""The panel Inside without a browser: its charts of an inspection, or the reason why there are none."""

from __future__ import annotations

import html
import json
import re
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app
from adapter.base.template import Message
from adapter.method.checkpoint import save_adapter
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualFeatures
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.settings import Settings
from adapter.serve.store import AdapterStore
from adapter.server.loader import LoadStatus
from adapter.ui import conversation
from adapter.ui.chat.events import ChatEvents
from adapter.ui.conversation import AnswerRecord, History
from adapter.ui.conversation_states import ConversationStates
from adapter.ui.inside import charts as inside_charts
from adapter.ui.inside import panel as inside_panel
from adapter.ui.inside.panel import InsideEvents
from adapter.ui.texts import inside as texts
from adapter.ui.texts import page as page_texts
from tests.fake_engine import FakeCatalog, ReadyProvider, event_request
from tests.tiny_models import random_adapter

QUESTION = "What?"
REQUEST = event_request()


class RecordingEngine:
    """An engine that records the inspections it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: list[GenerationRequest] = []
        self.inspections: list[Any] = []

    def inspect(self, request: GenerationRequest, ids: Any) -> Any:
        self.requests.append(request)
        self.inspections.append(self.engine.inspect(request, ids))
        return self.inspections[-1]


@pytest.fixture
def engine(tiny_base, tiny_fingerprint, tmp_path, monkeypatch):
    save_adapter(random_adapter(tiny_fingerprint, 1), tmp_path / "adapters" / "one")
    other = random_adapter(tiny_fingerprint, 2, prompt_length=3, insertion_layers=2)
    save_adapter(other, tmp_path / "adapters" / "two")
    sees = random_adapter(tiny_fingerprint, vision=VisionConfig(encoder="any", feature_size=6, hidden=5))
    for parameter in sees.projection.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(sees, tmp_path / "adapters" / "see")
    picture = VisualFeatures(torch.randn(1, 6))
    monkeypatch.setattr(
        "adapter.serve.prompts.load_encoder", lambda *_: SimpleNamespace(encode=lambda images, **_: picture)
    )
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with closing(Engine(tiny_base, AdapterStore(tmp_path / "adapters"))) as engine:
        yield RecordingEngine(engine)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    from PIL import Image

    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 8), "white").save(path)
    return str(path)


SETTINGS = Settings(adapter="one", temperature=0.0, top_p=1.0, max_tokens=9, seed=3)


def answered(record: str, picture: str | None = None) -> History:
    return [
        *conversation.user_turn(QUESTION, picture),
        conversation.answer("It is."),
        conversation.stats("a line", record=record),
    ]


def recorded(engine: RecordingEngine, picture: str | None = None, tokens: int = 10, **changes: Any) -> History:
    """A conversation with an answer of the engine and its record."""
    used = SETTINGS.replace(max_tokens=tokens, **changes)
    request = GenerationRequest(
        (Message("user", QUESTION),),
        used.adapter or None,
        None if picture is None else inside_panel.open_upload(picture),
        used.strength,
        SamplingParams(0, max_new_tokens=tokens),
        mix=((used.mix, used.mix_strength),) if used.mix else (),
        mute_layers=tuple(used.mute_layers),
        mute_heads=tuple(used.mute_heads),
    )
    ids = [event.token_id for event in engine.engine.submit(request) if event.token_id is not None]
    return answered(AnswerRecord(used, tuple(ids), picture is not None).to_json(), picture)


def last_updates(panel: InsideEvents, history: History, colour: str = "influence") -> tuple[Any, ...]:
    """The last updates of message, gates, answer, colours and token."""
    return list(panel.show(history, colour, REQUEST))[-1]


def reason_shown(panel: InsideEvents, history: History) -> str:
    message, *rest = last_updates(panel, history)
    assert rest[0] == rest[1] == rest[3] == ""
    return html.unescape(re.sub(r"<[^>]+>", "", message))


def cells(markup: str) -> list[list[list[str]]]:
    """The texts of the cells of each table, row by row."""
    maps = re.findall(r"<tbody>(.*?)</tbody>", markup, re.DOTALL)
    return [[re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("</tr>")[:-1]] for table in maps]


def clicked(index: Any, key: Any = None) -> gr.EventData:
    return gr.EventData(None, {"index": index, "key": key})


def number(text: str) -> float:
    return float(text.replace("−", "-"))  # ".34" is one for Python too


class Tags(HTMLParser):
    """The tags and attributes in a markup, as a browser parses them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)


# Charts.


# Answers that older versions of the page stored may have muted layers and heads.
@pytest.mark.parametrize("mute", [{}, {"mute_layers": [2], "mute_heads": [0, 3]}])
def test_the_charts_have_the_numbers_of_the_inspection(engine, picture, mute) -> None:
    panel, history = (
        InsideEvents(ReadyProvider(engine)),
        recorded(engine, picture, adapter="see", mix="two", strength=0.8, **mute),
    )
    message, gates, answer, colours, _ = last_updates(panel, history, "grounding")
    (inspection,), (request,) = engine.inspections, engine.requests
    assert message == "" and colours["value"] == "grounding" and colours["visible"]
    assert request.mute_layers == tuple(mute.get("mute_layers", ()))
    assert request.mute_heads == tuple(mute.get("mute_heads", ()))
    assert request.image is not None and request.parts == (("see", 0.8), ("two", 1.0))
    maps = cells(gates)
    assert [len(rows) for rows in maps] == [3, 2]
    for rows, part in zip(maps, inspection.parts, strict=True):
        assert [[number(text) for text in row] for row in rows] == [
            [round(v, 2) for v in row] for row in part.gates.tolist()
        ]
    assert re.findall(r'<th scope="row">(\d+)</th>', gates) == ["1", "2", "3", "2", "3"]
    titles = re.findall(r'title="(.*?)"', answer)
    assert titles == [inside_charts.token_numbers(inspection, i) for i in range(len(inspection.tokens))]
    first = re.fullmatch(r"influence (.*) · grounding (.*) · log p (.*)", titles[0])
    assert [*map(number, first.groups())] == [
        round(float(v[0]), 2) for v in (inspection.influence, inspection.grounding, inspection.logprobs)
    ]
    key = re.search(r'data-key="(.*?)"', answer)[1]
    token = panel.show_token(history, clicked(4, key), REQUEST)
    assert len(engine.requests) == 1, "a click costs no forward pass"
    assert titles[4] in token
    for rows, part in zip(cells(token), inspection.parts, strict=True):
        assert [[int(text) for text in row] for row in rows] == [
            [round(v * 100) for v in row] for row in part.prompt_weights[4].tolist()
        ]


def test_shades_are_proportional_to_the_numbers(engine) -> None:
    _, gates, answer, colours, _ = last_updates(InsideEvents(ReadyProvider(engine)), recorded(engine), "grounding")
    (inspection,) = engine.inspections
    assert colours["value"] == "influence" and not colours["visible"]
    shades = [float(v) for v in re.findall(r"--v:([-\d.]+)", gates)]
    largest = inspection.parts[0].gates.abs().max()
    assert shades == [round(float(v / largest), 2) for v in inspection.parts[0].gates.flatten()]
    influence = [float(v) for v in re.findall(r"--i:([-\d.]+)", answer)]
    assert influence == [round(float(v / inspection.influence.abs().max()), 2) for v in inspection.influence]
    below = re.findall(r'data-i="(\d+)" class="ni"', answer)
    assert [int(i) for i in below] == (inspection.influence < 0).nonzero().flatten().tolist()
    assert "--g" not in answer and "grounding" not in answer


def test_a_click_on_what_is_no_longer_cached_inspects_again(engine) -> None:
    panel, history = InsideEvents(ReadyProvider(engine)), recorded(engine)
    *_, answer, _, _ = last_updates(panel, history)
    key = re.search(r'data-key="(.*?)"', answer)[1]
    cached = panel.show_token(history, clicked(2, key), REQUEST)
    assert InsideEvents(ReadyProvider(engine)).show_token(history, clicked(2, key), REQUEST) == cached
    assert len(engine.requests) == 2
    for index, wrong in ((-1, key), (99, key), ("0", key), (None, None), (True, key)):
        assert panel.show_token(history, clicked(index, wrong), REQUEST)["__type__"] == "update"
    for data in (None, [], "x"):
        assert panel.show_token(history, gr.EventData(None, data), REQUEST)["__type__"] == "update"
    assert texts.NO_ANSWER in panel.show_token([], clicked(0), REQUEST)


def test_a_click_on_an_answer_that_has_been_replaced_changes_nothing(engine) -> None:
    panel, old = InsideEvents(ReadyProvider(engine)), recorded(engine, tokens=4)
    key = re.search(r'data-key="(.*?)"', last_updates(panel, old)[2])[1]
    new = recorded(engine, tokens=3)
    # The chat has a new answer, and the panel still shows the old one: even if that is no longer cached.
    for events in (panel, InsideEvents(ReadyProvider(engine))):
        assert events.show_token(new, clicked(1, key), REQUEST) == gr.skip()
    # The new answer is shown while the old one's token is being inspected again.
    panel._cache.clear()
    inspect = engine.inspect

    def meanwhile(*arguments: Any) -> Any:
        engine.inspect = inspect
        last_updates(panel, new)
        return inspect(*arguments)

    engine.inspect = meanwhile
    assert panel.show_token(old, clicked(1, key), REQUEST) == gr.skip()
    # Another page that shows the old answer is not concerned.
    other = event_request("other")
    *_, (_, _, markup, *_) = panel.show(old, "influence", other)
    key = re.search(r'data-key="(.*?)"', markup)[1]
    last_updates(panel, new)
    assert isinstance(panel.show_token(old, clicked(1, key), other), str)


def test_the_text_of_a_model_is_inert(engine) -> None:
    history = recorded(engine)
    last_updates(InsideEvents(ReadyProvider(engine)), history)
    bad = ('<img src=x onerror="alert(1)">', "a\nb", "</button><script>", '" onclick="x', "&amp;", "${1}", "`")
    bad = (*bad, "", "", "")
    inspection = replace(engine.inspections[0], tokens=bad)
    for markup in (
        inside_charts.answer_html(inspection, "key", len(bad)),
        *[inside_charts.token_html(inspection, i, ["<b>"]) for i in range(len(bad))],
        inside_charts.gates_html(inspection, ['<i "x">']),
        inside_charts.message_html("<script>"),
    ):
        tags = Tags(markup)
        inner = {"span", "i", "b", "em", "br", "figure", "figcaption", "output"}
        assert tags.names <= {"p", "div", "button", "table", "thead", "tbody", "tr", "th", "td", *inner}
        allowed = {"type", "class", "style", "title", "scope", "role", "aria-label", "aria-live"}
        assert all(name in allowed or name.startswith("data-") for name in tags.attributes)
    assert inside_charts.answer_html(inspection, "key", len(bad)).count("<br>") == 1
    assert f"<em>{texts.END_TOKEN}</em>" in inside_charts.answer_html(inspection, "key", len(bad))
    assert f"<em>{texts.END_TOKEN}</em>" not in inside_charts.answer_html(inspection, "key", len(bad) + 1)


def test_a_long_answer_is_small_html_and_a_very_long_one_is_cut(engine) -> None:
    history = recorded(engine)
    last_updates(InsideEvents(ReadyProvider(engine)), history)
    one = engine.inspections[0]
    times = 26
    wide = {name: torch.cat([getattr(one, name)] * times) for name in ("shares", "logprobs")}
    wide["no_image_logprobs"] = wide["logprobs"]
    long = replace(one, tokens=(" winter",) * (10 * times), base=one.base * times, **wide)
    markup = inside_charts.answer_html(long, "key", 1000)
    assert markup.count("data-i=") == 260 and len(markup) < 60_000
    assert texts.only_first(260, 1000) in markup
    token_ids = (5,) * 600
    history = answered(AnswerRecord(SETTINGS, token_ids, False).to_json())
    short = InsideEvents(SimpleNamespace(engine=lambda: engine, status=None))
    assert "reads 128" in reason_shown(short, history)  # the tiny base's context
    seen: list[int] = []
    engine.inspect = lambda request, ids: seen.append(len(ids)) or engine.inspections[0]
    assert texts.only_first(len(one.tokens), 600) in last_updates(short, history)[2]
    assert seen == [inside_panel.MAX_TOKENS]


# Reasons why there is nothing to show.


def test_each_reason_has_its_sentence(engine, picture, tmp_path: Path) -> None:
    panel = InsideEvents(ReadyProvider(engine))
    good = recorded(engine)
    record = json.loads(good[-1]["metadata"]["log"])
    seen = recorded(engine, picture, adapter="see")
    cases = [
        ([], texts.NO_ANSWER),
        (conversation.user_turn("hi"), texts.NO_ANSWER),
        ([*conversation.user_turn("hi"), conversation.note("…", waiting=True)], texts.NO_ANSWER),
        ([*conversation.user_turn("hi"), conversation.answer("imported")], texts.NO_RECORD),
        ([*conversation.user_turn("hi"), conversation.answer("x"), conversation.stats("y")], texts.NO_RECORD),
        (
            [*good, *conversation.user_turn("hi"), conversation.answer("stopped"), conversation.stats("line")],
            texts.NO_RECORD,
        ),
        (answered("{}"), texts.NO_RECORD),
        (recorded(engine, adapter=""), texts.NO_GATES),
        ([*seen[1:]], texts.NO_PICTURE),
        (answered(json.dumps({**record, "adapter": "gone"})), "There is no adapter 'gone'"),
        (answered(json.dumps({**record, "strength": 9.0})), texts.NO_RECORD),
        (answered(json.dumps({**record, "mute_layers": [77]})), "nothing to mute in layer 77"),
        (answered(json.dumps({**record, "token_ids": [1, 97]})), "from 0 to 96"),
        (answered(json.dumps({**record, "token_ids": []})), "no answer"),
        (answered(json.dumps({**record, "picture": True}), picture), "text only"),
    ]
    for history, sentence in cases:
        assert sentence in reason_shown(panel, history), sentence
    Path(picture).unlink()
    assert reason_shown(panel, seen) and str(tmp_path) not in reason_shown(panel, seen)
    outside = tmp_path.parent / "secret.png"
    outside.write_bytes(b"not for you")
    assert "secret" not in reason_shown(panel, answered(seen[-1]["metadata"]["log"], str(outside)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [*Settings.model_fields, "token_ids", "picture"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(),
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4),
    drop=st.sets(st.sampled_from(FIELDS), max_size=1),
)
def test_any_record_is_shown_or_refused_with_a_sentence(engine, text, changes, drop) -> None:
    whole = {**SETTINGS.model_dump(), "token_ids": [5, 6], "picture": False}
    forged = {name: value for name, value in {**whole, **changes}.items() if name not in drop}
    panel = InsideEvents(ReadyProvider(engine))
    for record in (text, json.dumps(forged)):
        message, gates, *_ = last_updates(panel, answered(record))
        assert bool(message) != bool(gates)
        assert page_texts.FAILED not in message
        panel.show_token(answered(record), clicked(0), REQUEST)


def test_an_unexpected_error_is_a_sentence_without_its_reason(engine) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("/secret/path")

    history = recorded(engine)
    engine.inspect = broken
    assert reason_shown(InsideEvents(ReadyProvider(engine)), history) == page_texts.FAILED
    assert page_texts.FAILED in InsideEvents(ReadyProvider(engine)).show_token(history, clicked(0), REQUEST)


def test_the_status_of_loading_is_shown_to_whoever_opens_the_panel_early(engine) -> None:
    history, states = recorded(engine), iter([None, None, engine, engine, engine])
    provider = SimpleNamespace(
        engine=lambda: next(states),
        status=lambda: LoadStatus("loading", "Loading it"),
        wait=lambda seconds: None,
    )
    message = [update[0] for update in InsideEvents(provider).show(history, "influence", REQUEST)]
    assert "Loading it" in message[0] and texts.INSPECTING in message[-2] and message[-1] == ""
    failed = SimpleNamespace(engine=lambda: None, status=lambda: LoadStatus("failed", "No memory"))
    assert "No memory" in reason_shown(InsideEvents(failed), history)


# The closed panel.


def test_only_the_hidden_field_and_what_is_pressed_reach_the_server() -> None:
    """A conversation that grows and a panel that opens run in the browser alone; it decides about the field."""
    page = app.build_page(ReadyProvider(None), FakeCatalog())
    by_id = {component["id"]: component["props"].get("elem_id") for component in page.config["components"]}
    mine = {"inside", "inside-request", "inside-answer", "inside-gates", "inside-token", "inside-rewritten"}
    reach, alone = set(), set()
    for dependency in page.config["dependencies"]:
        outputs = {by_id.get(i) for i in dependency["outputs"]}
        for target, event in dependency["targets"]:
            name = by_id.get(target)
            if name in mine or outputs & mine:
                (reach if dependency["backend_fn"] else alone).add((name, event))
    assert reach == {("inside-request", "change"), ("inside-answer", "token"), ("inside-gates", "play")}
    assert alone == {("inside", "expand"), ("chat", "change"), ("inside-request", "change")}


# Painted gates.


def played(events: InsideEvents, history: History, gates: Any) -> str:
    return list(events.play(history, gr.EventData(None, {"gates": gates}), REQUEST))[-1]


def test_an_answer_is_written_with_the_painted_gates(engine) -> None:
    panel, history = InsideEvents(ReadyProvider(engine.engine)), recorded(engine)
    gates = [[layer, 0, 2] for layer in engine.engine.store.load("one", engine.engine.base).config.layers]

    def answer(gates: Any) -> list[str]:
        sampling = SamplingParams(0, max_new_tokens=10)
        request = GenerationRequest((Message("user", QUESTION),), "one", sampling=sampling, gates=gates)
        return "".join(event.text for event in engine.engine.submit(request)).split()

    markup = played(panel, history, gates)
    plain = re.sub(r"<[^>]+>", "", markup.partition('answer-text">')[2]).split()
    assert plain == answer(tuple(map(tuple, gates))) != answer(()) and "<mark>" in markup
    assert played(panel, history, []) == ""
    assert texts.NO_ANSWER in played(panel, [], gates)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        *[(w, "another kind") for w in (None, "x", [[1, 2]], [["1", 0, 0]], [[True, 0, 0]], [[0.5, 0, 1]])],
        ([[0, 0, "<b>"]], "another kind"),
        ([[0, 0, 3]], "between 0 and 2"),
        ([[99, 0, 0]], "nothing to mute in layer 99"),
    ],
)
def test_wrong_gates_are_one_sentence(engine, wrong: Any, sentence: str) -> None:
    assert sentence in played(InsideEvents(ReadyProvider(engine.engine)), recorded(engine, tokens=2), wrong)


# X-ray of an answer that was written without.


def test_xray_reads_the_newest_answer_once_more(engine) -> None:
    events = ChatEvents(ReadyProvider(engine), FakeCatalog(), [], ConversationStates())
    history = [*recorded(engine), *recorded(engine, tokens=4)]
    shown = events.xray(True, history, "5", REQUEST)
    assert [bool(conversation.xray_of(entry)) for entry in shown] == [False] * 4 + [True, False]
    assert len(engine.inspections) == 1
    lines = [json.loads(line) for line in conversation.xray_of(shown[4]).split("\n")]
    found = engine.inspections[0]
    assert [line[0] for line in lines] == list(found.tokens)
    for (_, logprob, base, top), influence in zip(lines, found.influence.tolist(), strict=True):
        assert abs(logprob - base - influence) < 0.01 and len(top) == 3 and top[0][1] >= base
    asked = [*history, *conversation.user_turn("And?")]
    cases = [(False, history), (True, shown), (True, []), (True, recorded(engine, adapter="")), (True, asked[:1])]
    for on, other in cases:
        assert events.xray(on, other, "9", REQUEST) == gr.skip()
