"""The newest answer with other gates: rewritten as the visitor paints them, the search for the fewest gates that
keep a word or the voice, and the adapter that has only those.

The part of the panel Inside below the grid. inside.js paints; the engine answers with the factors of the request.
"""

from __future__ import annotations

import html
import json
import logging
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.server.generation import AdapterCatalog, EngineProvider, browser_text, client_of
from adapter.ui.conversation import History
from adapter.ui.inside import charts as inside_charts
from adapter.ui.inside.panel import InsidePanel, inspect_newest, newest_request
from adapter.ui.status import MODEL, PRIVATE, REDRAW_SECONDS, UNQUEUED, toast
from adapter.ui.texts import inside as texts
from adapter.ui.texts import page as page_texts

if TYPE_CHECKING:
    from adapter.serve.inspection import Inspection
    from adapter.serve.request import GenerationRequest

log = logging.getLogger(__name__)

Gates = tuple[tuple[int, int, float], ...]  # as in GenerationRequest
BATCH = 6  # sets of gates that are tried at once
ROUNDS = 4  # batches of a search: with those of a chat it stays below what one address may ask in a minute
MOST_TOKENS = 48  # of an answer that is tried
STYLE_NATS, STYLE_PART = 2.0, 2 / 3  # influence of a word of the style; part of them that the voice keeps


def parse_gates(value: Any) -> Gates:
    """Factors as the browser sends them. Raises BadInput for anything else."""
    try:
        gates = tuple((layer, head, float(factor)) for layer, head, factor in value)
    except (TypeError, ValueError):
        raise BadInput(page_texts.WRONG_VALUE) from None
    if any(type(i) is not int for gate in gates for i in gate[:2]):
        raise BadInput(page_texts.WRONG_VALUE)
    return gates


class GateEvents:
    """The event handlers. Thread-safe; what they know comes with the event."""

    def __init__(self, provider: EngineProvider, catalog: AdapterCatalog) -> None:
        self.provider, self.catalog = provider, catalog

    def play(self, history: History, event: gr.EventData, request: gr.Request) -> Iterator[tuple[str, str]]:
        """The answer with the factors of the event, and these as JSON."""
        try:
            gates = parse_gates(getattr(event, "gates", None))
            if not gates:
                yield "", ""
                return
            asked, text, _ = newest_request(self.provider, history, client_of(request))
            for written in self._answers([replace(asked, gates=gates)]):
                yield _rewritten(text, written[0]), json.dumps(gates)
        except AdapterError as error:
            yield inside_charts.message_html(browser_text(error)), ""
        except Exception:
            log.exception("an answer could not be written with other gates")
            yield inside_charts.message_html(page_texts.FAILED), ""

    def find(self, history: History, word: str, request: gr.Request) -> Iterator[tuple[Any, Any, Any]]:
        """Searches for few gates that keep `word`, or the answer's style if that is empty.

        Updates of the rewritten answer, the factors and the grid.
        """
        try:
            client = client_of(request)
            asked, text, _ = newest_request(self.provider, history, client)
            inspected = inspect_newest(self.provider, history, client)
            inspection = inspected.inspection
            yield inside_charts.message_html(texts.SEARCHING), gr.skip(), gr.skip()
            keeps, ranked = _target(word.strip(), inspection), _rank(inspection)
            sampling = replace(asked.sampling, max_new_tokens=min(MOST_TOKENS, len(inspection.tokens)))

            def answers(sets: Sequence[int]) -> list[str]:
                tried = [replace(asked, sampling=sampling, gates=_all_but(ranked[:n], ranked)) for n in sets]
                return list(self._answers(tried))[-1]

            found = len(ranked)
            for tried, few in _bisect(len(ranked), lambda sets: [keeps(a) for a in answers(sets)]):
                found = few
                yield inside_charts.message_html(texts.searching(tried, BATCH * ROUNDS, few)), gr.skip(), gr.skip()
            gates = _all_but(ranked[:found], ranked)
            grid = inside_charts.gates_html(inspection, inspected.names, gates)
            for written in self._answers([replace(asked, gates=gates)]):
                said = texts.found(found, len(ranked), word.strip())
                yield _rewritten(text, written[0], said), json.dumps(gates), grid
        except AdapterError as error:
            yield inside_charts.message_html(browser_text(error)), gr.skip(), gr.skip()
        except Exception:
            log.exception("the search for gates failed")
            yield inside_charts.message_html(page_texts.FAILED), gr.skip(), gr.skip()

    def save(self, history: History, factors: str, request: gr.Request) -> None:
        """Adds the answer's adapter with these gates to the store, under a name that says how many are open."""
        from adapter.method.adapter import with_gate_factors
        from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS, save_adapter
        from adapter.server.adapter_upload import add_adapter

        try:
            gates = parse_gates(json.loads(factors)) if factors else ()
            asked, _, _ = newest_request(self.provider, history, client_of(request))
            engine = self.provider.engine()
            if not gates or engine is None:
                raise BadInput(texts.NOTHING_TO_SAVE)
            if asked.mix or not asked.adapter:
                raise BadInput(texts.ONE_ADAPTER_TO_SAVE)
            store = self.catalog.bound()
            adapter = with_gate_factors(store.load(asked.adapter, engine.base), gates)
            count = int(adapter.gates.count_nonzero())
            with tempfile.TemporaryDirectory() as folder:
                name = f"{asked.adapter[:28]}-{count}-gates"
                card = texts.sparse_card(name, asked.adapter, count, adapter.gates.numel())
                save_adapter(adapter, Path(folder), card)
                files = [Path(folder) / file for file in (CONFIG, WEIGHTS, CARD)]
                saved = add_adapter(files, name, store, engine.base.fingerprint)
            gr.Info(page_texts.adapter_saved(saved.name), duration=6)
        except ValueError:
            toast(BadInput(page_texts.WRONG_VALUE))
        except AdapterError as error:
            toast(error)

    def _answers(self, requests: Sequence[GenerationRequest]) -> Iterator[list[str]]:
        """The texts so far of all answers, which are written in one batch."""
        from adapter.serve.request import read_together

        engine = self.provider.engine()
        assert engine is not None
        written = [""] * len(requests)
        with ExitStack() as stack:
            answers = {i: stack.enter_context(closing(engine.submit(r))) for i, r in enumerate(requests)}
            for arrived in read_together(answers, REDRAW_SECONDS):
                for i, event in arrived:
                    if isinstance(event, AdapterError):
                        raise event
                    written[i] += event.text
                yield written


def _target(word: str, inspection: Inspection) -> Callable[[str], bool]:
    """Whether a text keeps the word, or the style if there is none. Raises BadInput."""
    tokens = inspection.tokens[:MOST_TOKENS]
    if word:
        if word.lower() not in "".join(tokens).lower():
            raise BadInput(texts.no_such_word(word, MOST_TOKENS))
        return lambda answer: word.lower() in answer.lower()
    by_token = zip(tokens, inspection.influence.tolist(), strict=False)
    style = {text.strip().lower() for text, nats in by_token if nats >= STYLE_NATS and re.search(r"\w\w", text)}
    if not style:
        raise BadInput(texts.NO_STYLE)
    return lambda answer: sum(part in answer.lower() for part in style) >= STYLE_PART * len(style)


def _rank(inspection: Inspection) -> list[tuple[int, int]]:
    """All open gates as (layer, head), those first whose prompts gave most of the attention in the answer."""
    shares = inspection.shares.mean(0)  # [L, H]
    heads = shares.shape[1]
    order = shares.flatten().argsort(descending=True).tolist()
    return [(inspection.layers[i // heads], i % heads) for i in order if shares.flatten()[i] > 0]


def _all_but(kept: Sequence[tuple[int, int]], gates: Sequence[tuple[int, int]]) -> Gates:
    return tuple((layer, head, 0.0) for layer, head in sorted(set(gates) - set(kept)))


def _bisect(total: int, keeps: Callable[[list[int]], list[bool]]) -> Iterator[tuple[int, int]]:
    """How many sets were tried and the smallest number of first gates that kept the target, batch by batch.

    Each batch divides what is left; the first one by equal factors, because few gates often do.
    """
    low, high, tried = 0, total, 0
    for number in range(ROUNDS):
        if high - low < 2:
            return
        steps = range(1, BATCH + 1)
        if number == 0:
            sets = {round(math.exp(math.log(total) * i / (BATCH + 1))) for i in steps}
        else:
            sets = {low + (high - low) * i // (BATCH + 1) for i in steps}
        ordered = sorted(n for n in sets if low < n < high)
        kept = dict(zip(ordered, keeps(ordered), strict=True))
        high = min((n for n in ordered if kept[n]), default=high)
        low = max((n for n in ordered if n < high), default=low)
        tried += len(ordered)
        yield tried, high


def _rewritten(before: str, after: str, said: str = texts.REWRITTEN) -> str:
    """The answer with the words marked that the one before has not."""
    from adapter.ui.comparison import mark_differences

    marked, _, _ = mark_differences(before, after)
    return f'<div class="rewritten"><p>{html.escape(said)}</p><div class="answer-text">{marked}</div></div>'


def gate_player(
    provider: EngineProvider, catalog: AdapterCatalog, chat: gr.Chatbot, inside: InsidePanel, saves: bool
) -> None:
    """Lays the part out above the grid of `inside` and connects it. saves: whether visitors may add adapters."""
    with inside.above_gates:
        gr.Radio(texts.BRUSHES, value=0, label=texts.BRUSH, elem_id="inside-brush")
        with gr.Row(elem_id="inside-find"):
            word = gr.Textbox(
                label=texts.WORD_TO_KEEP, placeholder=texts.WHOLE_VOICE, max_lines=1, max_length=60, min_width=120
            )
            find = gr.Button(texts.FIND, size="sm", elem_id="inside-find-button")
        rewritten = gr.HTML("", elem_id="inside-rewritten")
        factors = gr.Textbox(visible="hidden", show_label=False, elem_id="inside-factors")
        save = gr.Button(texts.SAVE_SPARSE, size="sm", elem_id="inside-save", visible=saves)
    events = GateEvents(provider, catalog)
    options = {"show_progress": "hidden", "trigger_mode": "always_last", **MODEL, **PRIVATE}
    inside.gates.play(events.play, chat, [rewritten, factors], **options)
    find.click(events.find, [chat, word], [rewritten, factors, inside.gates], **options)
    if saves:  # or a program could
        alone = {"concurrency_limit": 1, "concurrency_id": "adapter-upload", **PRIVATE}
        save.click(events.save, [chat, factors], None, **alone)
    cleared = {"outputs": [rewritten, factors], **UNQUEUED}
    inside.conversation_hash.change(None, None, js="() => ['', '']", **cleared)
