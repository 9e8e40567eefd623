"""The strip of running rows: what it names, and what it never does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from adapter.serve.statistics import EngineStatistics, RowStatistics
from adapter.ui.room import MOST_CELLS, room_html, running_rows
from tests.fake_engine import ReadyProvider


def provider(*rows: RowStatistics) -> Any:
    base = SimpleNamespace(memory_bytes=146 * 2**20)
    one, other = EngineStatistics(rows=rows[:1]), EngineStatistics(rows=rows[1:])
    return ReadyProvider(SimpleNamespace(base=base, replicas=lambda: {"a": one, "b": other}))


def test_adapters_of_others_have_no_name() -> None:
    rows = RowStatistics(("pirate",), 7), RowStatistics(("<b>mine",), 8), RowStatistics(("her-diary",), 9)
    shown = room_html(provider(*rows, RowStatistics((), 10)), ["<b>mine", None])
    assert "146 MB" in shown and "her-diary" not in shown and "<b>mine" not in shown
    cells = [cell.partition("</span>")[0].partition(">")[2] for cell in shown.split('<span class="cell')[1:]]
    assert cells == [
        "pirate <b>7</b>",
        "&lt;b&gt;mine <b>8</b>",
        "another adapter <b>9</b>",
        "frozen base <b>10</b>",
    ]


def test_no_engine_and_too_many_rows() -> None:
    assert room_html(ReadyProvider(None), ()) == "" and running_rows(ReadyProvider(None)) == []
    many = provider(*[RowStatistics((), 1)] * 100)
    assert len(running_rows(many)) == 100 and room_html(many, ()).count("cell base") == MOST_CELLS
