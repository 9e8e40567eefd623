"""Transcript files: what is written is read, and whatever else strangers send is refused with a sentence."""

import base64
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.base.template import Message
from adapter.errors import BadInput
from adapter.server import transcript
from tests.app_process import PATIENCE
from tests.untrusted_json import ALMOST_TRANSCRIPT, ANY_JSON, files_touched

PICTURE = "data:image/png;base64," + base64.b64encode(b"bytes of a picture").decode()
MANY = settings(deadline=None, max_examples=100)

RIGHT: dict[str, Any] = {"format": transcript.FORMAT, "version": 2, "messages": []}


@MANY
@given(data=ANY_JSON | ALMOST_TRANSCRIPT)
def test_an_import_raises_one_kind_of_error_and_touches_no_file(data):
    with files_touched() as touched, contextlib.suppress(BadInput):
        transcript.read(json.dumps(data))
    assert touched == []


@MANY
@given(text=st.text() | st.binary() | st.just("[" * 100_000) | st.just('{"a":' * 5000) | st.just("9" * 5000))
def test_a_file_of_any_kind_is_refused_with_a_sentence(text):
    with files_touched() as touched, pytest.raises(BadInput):
        transcript.read(text)
    assert touched == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"version": 1}, "version"), ({"format": "x"}, "no conversation"), ({"messages": {}}, "no conversation")],
)
def test_the_sentence_says_what_is_wrong(change, sentence):
    assert transcript.check(RIGHT) == transcript.Transcript(())
    with pytest.raises(BadInput, match=sentence):
        transcript.check({**RIGHT, **change})


@pytest.mark.parametrize(
    ("message", "remark"),
    [
        ({"role": "user", "text": 3}, transcript.MESSAGE_NOT_KEPT),
        ({"role": "user", "picture": "a"}, transcript.PICTURE_NOT_KEPT),
    ],
)
def test_a_remark_stands_in_place_of_what_is_malformed(message, remark):
    other = {"role": "user", "text": "hi"}
    read = transcript.check({**RIGHT, "messages": [message, other], "pictures": {"a": "/etc/hosts"}})
    assert [(one.role, one.text) for one in read.messages] == [("page", remark), ("user", "hi")]


def test_the_values_of_two_large_texts_are_in_memory_at_a_time(monkeypatch):
    happened, real = [], json.loads
    text = json.dumps(RIGHT)
    large = text + " " * 2**20
    monkeypatch.setattr(transcript.json, "loads", lambda text, **_: happened.append(len(text)) or real(text))
    with ThreadPoolExecutor(1) as pool:
        with transcript._large_texts, transcript._large_texts:
            third = pool.submit(transcript.read, large)
            for _ in range(200):  # small ones do not wait
                transcript.read(text)
        assert third.result(PATIENCE).messages == ()
    assert happened == [len(text)] * 200 + [len(large)]


@pytest.mark.parametrize("value", ["[],", '{"":0},'])
def test_a_file_of_millions_of_values_is_refused_before_it_is_parsed(value, monkeypatch):
    text = json.dumps({**RIGHT, "settings": {"a": "@"}}).replace('"@"', f"[{value * 3_000_000}0]")
    monkeypatch.setattr(transcript.json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(BadInput, match="not JSON"):
        transcript.read(text[: transcript.MAX_BYTES])


def test_what_is_answered_are_the_messages_up_to_the_last_of_the_user():
    messages = [
        {"role": "user", "picture": "key"},
        {"role": "user", "text": "what?"},
        {"role": "assistant", "text": "a cat", "about": "see", "record": {"adapter": "see"}},
        {"role": "page", "text": "a remark"},
        {"role": "user", "text": "really?"},
        {"role": "assistant", "text": "yes"},
    ]
    asked, picture = transcript.read(
        json.dumps({**transcript.to_document(messages), "pictures": {"key": PICTURE}})
    ).to_answer()
    assert asked == (
        Message("user", "what?"),
        Message("assistant", "a cat", name="see"),
        Message("user", "really?"),
    )
    assert picture == b"bytes of a picture"
