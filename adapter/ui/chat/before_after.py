"""Before and after: what the frozen base answers to the newest question, for a link that is shared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from adapter.serve.request import Client
from adapter.serve.settings import BASE_ONLY
from adapter.server.generation import EngineProvider
from adapter.ui import conversation
from adapter.ui.answer_stream import build_request
from adapter.ui.conversation import Entry
from adapter.ui.texts import page as texts

MAX_TOKENS = 160
SECONDS = 1.0  # between two looks at the answer


def before(history: Sequence[Entry], provider: EngineProvider, client: Client) -> str:
    """The answer at strength 0, as the page says it; "" where no adapter has answered. Raises AdapterError."""
    recorded, engine = conversation.last_recorded_answer(history), provider.engine()
    settings = conversation.parse_settings(recorded.record) if recorded else None
    if recorded is None or settings is None or engine is None or not settings.adapter:
        return ""
    plain = settings.replace(
        adapter=BASE_ONLY, mix=BASE_ONLY, mute_layers=(), mute_heads=(), max_tokens=MAX_TOKENS
    )
    with closing(engine.submit(build_request(recorded.messages, plain, None, client))) as events:
        text = "".join(event.text for arrived in events.event_lists(SECONDS) for event in arrived)
    return texts.at_strength_0(" ".join(text.split()))
