"""The film that a newcomer sees on Compare is what the shipped adapter says on the real base, word for word.

`python -m tests.ui.compare.test_filmstrip_example` records it again.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapter.base.template import Message
from adapter.serve.settings import Settings
from adapter.ui import theme
from adapter.ui.compare.filmstrip import frames_of

MESSAGE = "Why is the sky blue?"
SETTINGS = {"adapter": "pirate", "temperature": 0, "max_tokens": 64, "seed": 0}  # greedy


def record(base: Any) -> dict[str, Any]:
    from adapter.serve.engine import Engine
    from adapter.serve.request import Client
    from adapter.serve.store import SHIPPED, AdapterStore
    from adapter.ui.answer_stream import build_request

    frames = frames_of(Settings.checked(SETTINGS))
    engine = Engine(base, AdapterStore(SHIPPED))
    try:
        requests = [build_request((Message("user", MESSAGE),), f.settings, None, Client()) for f in frames]
        for frame, events in zip(frames, [engine.submit(request) for request in requests], strict=True):
            for event in events:
                frame.add(event)
    finally:
        engine.close()
    answers = [{"text": f.text, "tokens": f.tokens, "notes": f.notes} for f in frames]
    return {"message": MESSAGE, "settings": SETTINGS, "precision": base.quantization, "answers": answers}


@pytest.mark.slow
def test_the_example_is_what_the_adapter_answers(base: Any) -> None:
    example = json.loads(theme.FILM_EXAMPLE.read_text(encoding="utf-8"))
    if base.quantization != example["precision"]:
        pytest.skip(f"recorded with a base of {example['precision']}")
    assert record(base) == example


if __name__ == "__main__":
    from adapter.base.llama import load_base

    text = json.dumps(record(load_base()), indent=2, ensure_ascii=False)
    theme.FILM_EXAMPLE.write_text(f"{text}\n", encoding="utf-8")
