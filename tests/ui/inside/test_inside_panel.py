"""The panel Inside without a browser: its charts of an inspection, or the reason why there are none."""

import html
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import Image

from adapter.base.template import Message
from adapter.lru import LRU
from adapter.method.checkpoint import save_adapter
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualFeatures
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.settings import Settings
from adapter.serve.store import AdapterStore
from adapter.server.generation import LoadStatus
from adapter.ui import conversation
from adapter.ui.conversation import AnswerRecord, Entry, History
from adapter.ui.inside import charts as inside_charts
from adapter.ui.inside import panel as inside_panel
from adapter.ui.inside.panel import InsideEvents
from adapter.ui.session import Conversations
from adapter.ui.texts import page as texts
from tests.fake_engine import ReadyProvider, event_request
from tests.tiny_models import random_adapter

QUESTION = "What?"
REQUEST = event_request()
SETTINGS = Settings(adapter="one", temperature=0.0, top_p=1.0, max_tokens=9, seed=3)
GREEDY = SamplingParams(0, max_new_tokens=10)


class RecordingEngine:
    """An engine that records the inspections it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.submit = engine, engine.submit
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
    vision = VisionConfig(encoder="any", feature_size=6, hidden=5)
    save_adapter(random_adapter(tiny_fingerprint, spread=0.3, vision=vision), tmp_path / "adapters" / "see")
    encoder = SimpleNamespace(encode=lambda images, **_: VisualFeatures(torch.ones(1, 6)))
    monkeypatch.setattr("adapter.serve.prompts.load_encoder", lambda *_: encoder)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with closing(Engine(tiny_base, AdapterStore(tmp_path / "adapters"))) as engine:
        yield RecordingEngine(engine)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def answered(record: AnswerRecord, picture: str | None = None) -> History:
    entry = Entry("assistant", "It is.", about="a line", record=record)
    return [*conversation.user_turn(QUESTION, picture), entry]


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
    )
    ids = [event.token_id for event in engine.submit(request) if event.token_id is not None]
    return answered(AnswerRecord(used, tuple(ids), picture is not None), picture)


def panel_of(engine: Any, history: History = []) -> InsideEvents:  # noqa: B006
    """A panel of a page that shows the history."""
    panel = InsideEvents(ReadyProvider(engine), Conversations())
    panel.conversations.open("me", "a", history)
    return panel


def last_updates(panel: InsideEvents, history: History) -> tuple[Any, ...]:
    """The last updates of message, gates, words, one word and the rewritten answer."""
    panel.conversations.shown("me", "a").history = history
    return list(panel.show("a", REQUEST))[-1]


def reason_shown(panel: InsideEvents, history: History) -> str:
    message, *rest = last_updates(panel, history)
    assert rest == [""] * 4
    return html.unescape(re.sub(r"<[^>]+>", "", message))


def cells(markup: str) -> list[list[list[str]]]:
    """The texts of the cells of each table, row by row."""
    maps = re.findall(r"<tbody>(.*?)</tbody>", markup, re.DOTALL)
    return [[re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("</tr>")[:-1]] for table in maps]


def clicked(index: Any, key: Any = None) -> gr.EventData:
    return gr.EventData(None, {"index": index, "key": key})


def key_of(answer: str) -> str:
    """What a click on a token of this chart sends."""
    return re.findall(r'data-key="(.*?)"', answer)[0]


def number(text: str) -> float:
    return float(text.replace("−", "-"))  # ".34" is one for Python too


def test_the_charts_have_the_numbers_of_the_inspection(engine, picture):
    panel = panel_of(engine)
    history = recorded(engine, picture, adapter="see", mix="two", strength=0.8)
    panel.conversations.close("me")  # as Gradio does with a page that sleeps
    message, gates, answer, _, rewritten = last_updates(panel, history)
    (inspection,), (request,) = engine.inspections, engine.requests
    assert message == rewritten == "" and "picture made each word" in answer
    assert request.image is not None and request.parts == (("see", 0.8), ("two", 1.1))
    maps = cells(gates)
    assert [len(rows) for rows in maps] == [3, 2]
    for rows, part in zip(maps, inspection.parts, strict=True):
        shown = [[number(text) for text in row] for row in rows]
        assert shown == [[round(v, 2) for v in row] for row in part.gates.tolist()]
    influence = [number(text) for text in re.findall(r'title="influence (.*?) ·', answer)]
    assert influence == [round(float(v), 2) for v in inspection.influence]
    token = panel.show_token("a", clicked(4, key_of(answer)), REQUEST)
    assert len(engine.requests) == 1, "a click costs no forward pass"
    for rows, part in zip(cells(token), inspection.parts, strict=True):
        shown = [[int(text) for text in row] for row in rows]
        assert shown == [[round(v * 100) for v in row] for row in part.prompt_weights[4].tolist()]


def test_a_click_on_an_answer_that_has_been_replaced_changes_nothing(engine):
    panel, old = panel_of(engine), recorded(engine, tokens=4)
    key = key_of(last_updates(panel, old)[2])
    for index, wrong in ((-1, key), (99, key), ("0", key), (None, None), (True, key), (1, "x")):
        assert panel.show_token("a", clicked(index, wrong), REQUEST) == gr.skip()
    assert panel.show_token("a", gr.EventData(None, "x"), REQUEST) == gr.skip()
    assert isinstance(panel.show_token("a", clicked(1, key), REQUEST), str)
    panel.conversations.shown("me", "a").history = recorded(engine, tokens=3)
    assert panel.show_token("a", clicked(1, key), REQUEST) == gr.skip()


def test_the_text_of_a_model_is_inert_and_a_long_answer_is_cut(engine):
    panel, history = panel_of(engine), recorded(engine)
    last_updates(panel, history)
    bad = ('<img src=x onerror="alert(1)">', "a\nb", "</button><script>", '" onclick="x', "&amp;", *[""] * 5)
    inspection = replace(engine.inspections[0], tokens=bad)
    for part in (
        inside_charts.answer_html(inspection, "key", len(bad)),
        *[inside_charts.token_html(inspection, i, ["<b>"], len(bad)) for i in range(len(bad))],
        inside_charts.gates_html(inspection, ['<i "x">']),
        inside_charts.message_html("<script>"),
    ):
        assert not re.search(r'<img|<script|<i "|" onclick="x', part)
    long = answered(AnswerRecord(SETTINGS, (5,) * 600))
    read: list[int] = []
    engine.inspect = lambda request, ids: read.append(len(ids)) or inspection
    last_updates(panel, long)
    assert read == [inside_panel.MAX_INSPECTED_ANSWER]


def test_each_reason_has_its_sentence(engine, picture, tmp_path):
    panel, good = panel_of(engine), recorded(engine)
    record, seen = good[-1].record, recorded(engine, picture, adapter="see")
    asked = conversation.user_turn("hi")
    assert "gates" in str(last_updates(panel, good))  # whose charts are kept, and not shown below another answer
    for history, sentence in (
        ([], texts.NO_ANSWER),
        ([*good, *asked, Entry("assistant", "stopped", about="line")], texts.NO_RECORD),
        (recorded(engine, adapter=""), texts.NO_GATES),
        (seen[1:], texts.PICTURE_GONE),
        (
            answered(replace(record, settings=record.settings.replace(adapter="gone"))),
            "There is no adapter 'gone'",
        ),
        (answered(replace(record, token_ids=(1, 97))), "from 0 to 96"),
    ):
        assert sentence in reason_shown(panel, history), sentence
    outside = tmp_path.parent / "secret.png"
    outside.write_bytes(b"not for you")
    assert "secret" not in reason_shown(panel, answered(seen[-1].record, str(outside)))
    engine.inspect = lambda *_: 1 / 0
    assert reason_shown(panel_of(engine), good) == texts.FAILED
    panel.provider = SimpleNamespace(engine=lambda: None, status=lambda: LoadStatus("failed", "No memory"))
    panel._cache = LRU(1)
    assert "No memory" in reason_shown(panel, good)


# Painted gates, and X-ray of an answer that was written without.


def test_an_answer_is_written_with_the_painted_gates(engine):
    history = recorded(engine)
    painted = [
        [layer, 0, 2] for layer in engine.engine.store.load("one", engine.engine.base.fingerprint).config.layers
    ]

    def played(gates: Any, history: History = history) -> str:
        return list(panel_of(engine, history).play("a", gr.EventData(None, {"gates": gates}), REQUEST))[-1]

    def answer(gates: Any) -> list[str]:
        request = GenerationRequest((Message("user", QUESTION),), "one", sampling=GREEDY, gates=gates)
        return "".join(event.text for event in engine.submit(request)).split()

    markup = played(painted)
    plain = re.sub(r"<[^>]+>", "", markup.partition('answer-text">')[2]).split()
    assert plain == answer(tuple(map(tuple, painted))) != answer(()) and "<mark>" in markup
    assert played([]) == "" and texts.NO_ANSWER in played(painted, [])
    for wrong in (None, "x", [[1, 2]], [["1", 0, 0]], [[True, 0, 0]], [[0, 0, "<b>"]]):
        assert "another kind" in played(wrong)
    assert "between 0 and 2" in played([[0, 0, 3]]) and "no gates in layer 99" in played([[99, 0, 0]])
