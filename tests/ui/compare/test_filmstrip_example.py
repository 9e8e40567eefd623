"""The film that a newcomer sees on Compare is what the shipped adapter says on the real base.

`python -m tests.ui.compare.test_filmstrip_example` records it again.
"""

import json
import re
from contextlib import closing
from typing import Any

import pytest

from adapter.base.template import Message
from adapter.serve.settings import Settings
from adapter.ui import theme
from adapter.ui.compare.tab import frames_of

SHADES = (0.5, 1.5, 3.0, 5.0)  # nats from which a word has the next darker shade, as in xray.js
FILMS = {
    "pirate": "Why is the sky blue?",
    "tutor": "What is gravity?",
    "extract": "Hi, this is Maria Keller from Nordlicht Ltd in Hamburg, you can call me on +49 40 5550 173.",
    "see": "What is this?",
}


def record(base: Any, adapter: str) -> tuple[dict[str, Any], set[str]]:
    """The film, and the words that may begin its answer at strength 1: within a nat of the likeliest."""
    from adapter.base.image_file import open_image
    from adapter.serve.engine import Engine
    from adapter.serve.request import Client
    from adapter.serve.store import SHIPPED, AdapterStore
    from adapter.ui.answer_stream import build_request

    settings = {"adapter": adapter, "temperature": 0, "max_tokens": 64, "seed": 0}  # greedy
    frames = frames_of(Settings.checked(settings))
    with closing(Engine(base, AdapterStore(SHIPPED))) as engine:
        question = (Message("user", FILMS[adapter]),)
        picture = open_image(theme.DRAWING) if adapter == "see" else None
        requests = [build_request(question, f.settings, picture, Client(), xray=True) for f in frames]
        for frame, events in zip(frames, [engine.submit(request) for request in requests], strict=True):
            for event in events:
                frame.add(event)
    answers = [[_word(line) for line in f.xray] or [[f.text, 0]] for f in frames]
    choices = json.loads(frames[2].xray[0])[4]
    begin = {text for text, logprob, _ in choices if logprob > choices[0][1] - 1}
    return {"message": FILMS[adapter], "settings": settings, "answers": answers}, begin


def _word(line: str) -> list[Any]:
    text, logprob, base, *_ = json.loads(line)
    influence = logprob - base
    shade = sum(abs(influence) >= bound for bound in SHADES)
    return [text, shade if influence > 0 else -shade]


@pytest.mark.slow
def test_the_films_are_what_the_adapters_answer(base):
    mixed = frames_of(Settings(adapter="poet", strength=0.5, mix="bard", mix_strength=0.75))
    assert [one.settings.mix_strength for one in mixed] == [0.0, 0.75, 1.5, 2.0, 2.0], "the base comes first"
    second = frames_of(Settings(adapter="poet", strength=0, mix="bard", mix_strength=0.5))[-1].settings
    assert (second.adapter, second.strength, second.mix, second.mix_strength) == ("bard", 2.0, "poet", 0.0)
    neither = frames_of(Settings(adapter="poet", strength=0, mix="bard", mix_strength=0))[-1].settings
    assert (neither.adapter, neither.mix) == ("poet", "bard")
    films = json.loads(theme.FILM_EXAMPLE.read_text(encoding="utf-8"))
    assert [film["settings"]["adapter"] for film in films] == list(FILMS)
    for film in films:
        shown, begin = record(base, film["settings"]["adapter"])
        # Each kind of processor rounds otherwise, and so chooses another word here and there.
        assert film["answers"][2][0][0] in begin and film | {"answers": shown["answers"]} == shown


if __name__ == "__main__":
    from adapter.base.llama import load_base

    base = load_base()
    lines = json.dumps([record(base, adapter)[0] for adapter in FILMS], indent=1, ensure_ascii=False)
    lines = re.sub(r"\[\s+(\"(?:[^\"\\]|\\.)*\"),\s+(-?\d)\s+\]", r"[\1, \2]", lines)  # a word a line
    theme.FILM_EXAMPLE.write_text(f"{lines}\n", encoding="utf-8")
