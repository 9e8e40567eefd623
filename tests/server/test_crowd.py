"""Many people at once: a real `python app.py`, and programs that each ask on a connection of their own."""

from __future__ import annotations

import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

PICTURE = Path(sysconfig.get_path("purelib")) / "skimage/data/coffee.png"
QUESTIONS = ("What is the sun?", "How do I bake bread?", "Who are you?", "Name three colours.")
ASKED: list[dict[str, Any]] = [
    *({"message": q, "adapter": a} for q in QUESTIONS for a in ("", "pirate")),
    *({"message": f"Meeting with Tom on {day} at 3 pm.", "adapter": "extract"} for day in ("Friday", "Monday")),
    {"message": "What is this?", "adapter": "see", "image": PICTURE},
]


def ask(url: str, question: dict[str, Any]) -> str:
    from gradio_client import Client, handle_file

    question = {**question, "temperature": 0, "max_tokens": 24}
    if "image" in question:
        question["image"] = handle_file(question["image"])
    return Client(url, verbose=False).predict(**question, api_name="/chat")


@pytest.mark.slow
def test_concurrent_answers_equal_answers_alone(url: str) -> None:
    alone = [ask(url, question) for question in ASKED]
    assert len(set(alone)) == len(ASKED)
    asked = [i % len(ASKED) for i in range(16)]
    with ThreadPoolExecutor(16) as crowd:
        answers = list(crowd.map(lambda index: ask(url, ASKED[index]), asked))
    assert answers == [alone[index] for index in asked]
