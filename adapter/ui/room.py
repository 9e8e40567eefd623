"""The room: a strip of the rows that the engine runs now, over the one base that they share.

Knows the engine's figures; knows no requests: no words and no names of people are in them.
"""

from __future__ import annotations

import html
import zlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from adapter.server.generation import EngineProvider
from adapter.ui import theme
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from adapter.serve.statistics import RowStatistics

MOST_CELLS = 24


def running_rows(provider: EngineProvider) -> list[RowStatistics]:
    engine = provider.engine()
    return [] if engine is None else [row for one in engine.replicas().values() for row in one.rows]


def room_html(provider: EngineProvider, own: Collection[object]) -> str:
    """own: adapters that the visitor has chosen. What others have trained or brought has no name here."""
    engine = provider.engine()
    if engine is None:
        return ""
    rows = running_rows(provider)[:MOST_CELLS]
    shown = {*own, *(folder.name for folder in theme.SHIPPED.iterdir())} if rows else ()
    cells = "".join(_cell(row, shown) for row in rows)
    base = html.escape(texts.one_base(f"{engine.base.memory_bytes / 2**20:.0f} MB"))
    return f'<div class="room">{cells}<small>{base}</small></div>'


def _cell(row: RowStatistics, shown: Collection[object]) -> str:
    names = [name if name in shown else texts.ANOTHER_ADAPTER for name in row.adapters] or [texts.BASE_NAME]
    name = " + ".join(names)
    hue = zlib.crc32(name.encode()) % 360
    grey = "" if row.adapters else " base"
    return f'<span class="cell{grey}" style="--hue: {hue}">{html.escape(name)} <b>{row.new_tokens}</b></span>'
