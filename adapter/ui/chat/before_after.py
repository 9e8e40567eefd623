"""Before and after: what the frozen base answers to the newest question, for a link that is shared."""

from __future__ import annotations

from collections.abc import Sequence

from adapter.serve.request import Client
from adapter.serve.settings import BASE_ONLY
from adapter.server.generation import EngineProvider
from adapter.ui import conversation
from adapter.ui.answer_stream import build_request, whole_answer
from adapter.ui.conversation import Entry
from adapter.ui.texts import page as texts

MAX_TOKENS = 160


def before(history: Sequence[Entry], provider: EngineProvider, client: Client) -> str:
    """The answer at strength 0, as the page says it; "" where no adapter has answered. Raises AdapterError."""
    recorded, engine = conversation.last_recorded_answer(history), provider.engine()
    settings = conversation.parse_settings(recorded.record) if recorded else None
    if recorded is None or settings is None or engine is None or not settings.adapter:
        return ""
    plain = settings.replace(
        adapter=BASE_ONLY, mix=BASE_ONLY, mute_layers=(), mute_heads=(), max_tokens=MAX_TOKENS
    )
    text = whole_answer(engine, build_request(recorded.messages, plain, None, client))
    return texts.at_strength_0(" ".join(text.split()))
