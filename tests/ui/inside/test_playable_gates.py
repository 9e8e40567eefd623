"""The newest answer with other gates, the search for few of them, and the adapter that has only those."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from adapter.base.template import Message
from adapter.errors import BadInput
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.ui.inside.playable_gates import BATCH, ROUNDS, GateEvents, _bisect, parse_gates
from adapter.ui.texts import inside as texts
from tests.fake_engine import ReadyProvider
from tests.ui.inside.test_inside_panel import QUESTION, REQUEST, engine, recorded  # noqa: F401


class Catalog:
    def __init__(self, store: Any) -> None:
        self.bound = lambda: store


@pytest.fixture
def events(engine) -> GateEvents:  # noqa: F811
    return GateEvents(ReadyProvider(engine.engine), Catalog(engine.engine.store))


def played(events: GateEvents, history: Any, gates: Any) -> tuple[str, str]:
    return list(events.play(history, gr.EventData(None, {"gates": gates}), REQUEST))[-1]


def plain(markup: str) -> str:
    """The text of the rewritten answer."""
    return re.sub(r"<[^>]+>", "", markup.partition('answer-text">')[2])


def answer(events: GateEvents, gates: Any, tokens: int = 10) -> str:
    request = GenerationRequest(
        (Message("user", QUESTION),), "one", sampling=SamplingParams(0, max_new_tokens=tokens), gates=gates
    )
    return "".join(event.text for event in events.provider.engine().submit(request))


def test_an_answer_is_written_with_the_painted_gates(events, engine) -> None:  # noqa: F811
    history = recorded(engine)
    layers = engine.engine.store.load("one", engine.engine.base).config.layers
    gates = [[layer, 0, 2] for layer in layers]
    markup, factors = played(events, history, gates)
    assert plain(markup).split() == answer(events, parse_gates(gates)).split() != answer(events, ()).split()
    assert json.loads(factors) == gates and "<mark>" in markup
    assert played(events, history, []) == ("", "")
    for wrong in (None, "x", [[1, 2]], [["1", 0, 0]], [[True, 0, 0]], [[0, 0, "<b>"]]):
        markup, factors = played(events, history, wrong)
        assert "another kind" in markup and not factors
    for wrong, sentence in (([[0, 0, 3]], "between 0 and 2"), ([[99, 0, 0]], "nothing to mute in layer 99")):
        assert sentence in played(events, history, wrong)[0]
    assert texts.NO_ANSWER in played(events, [], gates)[0]


def test_few_gates_are_found_that_keep_a_word(events, engine) -> None:  # noqa: F811
    history = recorded(engine)
    word = answer(events, ()).split()[0]
    *progress, (markup, factors, grid) = events.find(history, word, REQUEST)
    gates = parse_gates(json.loads(factors))
    assert gates and word in answer(events, gates) and f"keep “{word}”" in markup
    assert factors in grid and len(progress) > 2 and texts.SEARCHING in progress[0][0]
    assert "is not among" in list(events.find(history, "zebra", REQUEST))[-1][0]


@pytest.mark.parametrize("fewest", [1, 2, 83, 84, 269, 270])
def test_the_search_stays_within_its_tries_and_close_to_the_fewest(fewest: int) -> None:
    tries: list[int] = []

    def keeps(sets: list[int]) -> list[bool]:
        tries.extend(sets)
        return [n >= fewest for n in sets]

    *_, (tried, few) = _bisect(270, keeps)
    assert tried == len(tries) <= BATCH * ROUNDS
    assert fewest <= few <= fewest + 1


def test_the_gates_are_saved_as_an_adapter(events, engine, toasts, monkeypatch) -> None:  # noqa: F811
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, **_: told.append(text))
    history, store = recorded(engine), engine.engine.store
    whole = store.load("one", engine.engine.base)
    layers, heads = whole.config.layers, whole.gates.shape[1]
    gates = [[layer, head, 0.0] for layer in layers for head in range(heads) if (layer, head) != (layers[0], 1)]
    events.save(history, json.dumps(gates), REQUEST)
    events.save(history, json.dumps(gates), REQUEST)
    assert not toasts and len(told) == 2 and "one-1-gates" in told[0]
    sparse = store.load("one-1-gates", engine.engine.base)
    assert sparse.gates.count_nonzero() == 1 and sparse.gates[0, 1] == whole.gates[0, 1]
    assert f"one with 1 of its {whole.gates.numel()} gates" in store.card_text("one-1-gates")
    request = GenerationRequest((Message("user", QUESTION),), "one", sampling=SamplingParams(0, max_new_tokens=6))
    pair = [replace(request, gates=parse_gates(gates)), replace(request, adapter="one-1-gates")]
    first, second = ([event.logprob for event in engine.engine.submit(one)] for one in pair)
    assert first == second
    mixed = recorded(engine, mix="two")
    for other, factors in ((history, ""), (history, "[[1"), (mixed, json.dumps(gates)), (history, "[[99,0,0]]")):
        events.save(other, factors, REQUEST)
    assert len(toasts) == 4 and texts.NOTHING_TO_SAVE in toasts[0] and texts.ONE_ADAPTER_TO_SAVE in toasts[2]


def test_wrong_factors_are_one_sentence() -> None:
    with pytest.raises(BadInput):
        parse_gates([[0.5, 0, 1]])
