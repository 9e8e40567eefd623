"""Conversations in a file, a link and the browser's storage, pictures, and the command line."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gradio as gr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adapter.base import image_file
from adapter.base.image_file import MAX_SIDE
from adapter.serve.settings import Settings
from adapter.server import transcript
from adapter.server.limits import RateLimited
from adapter.server.transcript import PICTURE_NOT_KEPT, Dropped, TranscriptLimits
from adapter.ui import conversation, images
from adapter.ui.chat import conversation_json
from adapter.ui.chat.conversation_store import ConversationStore
from adapter.ui.conversation import AnswerRecord, Entry
from tests.base.hostile_pictures import encoded
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request

SETTINGS = Settings(adapter="pirate", seed=7, mix_strength=0.5)
MANY = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=50,
)


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def png(side: int = 8, colour: str = "white") -> bytes:
    return encoded(Image.new("RGB", (side, side), colour))


def answered(text: str, settings: Settings = SETTINGS, ids: tuple[int, ...] = (1, 2)) -> conversation.History:
    return [Entry("assistant", text, about="a line · 2 tokens", record=AnswerRecord(settings, ids))]


def from_browser(stored: Any, pictures: Any) -> conversation.History:
    return conversation_json.read(json.dumps({**stored, "pictures": pictures}), stored=True)[0]


def test_pictures_of_a_conversation_count_as_uploads_once(monkeypatch):
    history, counted = [Entry("user", picture=images.write_upload(png(9, "#123456"))), Entry("user", "?")], []
    text, path = to_file(history)[0], Path(history[0].picture or "")
    monkeypatch.setattr(images, "count_upload", counted.append)
    conversation_json.read(text)
    assert not counted, "it is there"
    path.unlink()
    with monkeypatch.context() as patch, pytest.raises(RateLimited):
        patch.setattr(images, "count_upload", Mock(side_effect=RateLimited("60 uploads an hour.", 1.0)))
        conversation_json.read(text)
    assert not path.exists()
    conversation_json.read(text)
    assert counted == [path.stat().st_size]


def to_file(history: conversation.History) -> tuple[str, Dropped]:
    """The text of an exported file, as conversations.js makes it, and what the browser does not keep."""
    packed = conversation_json.pack(history)
    return json.dumps({**packed.document, "pictures": packed.pictures()}), packed.dropped


def turns_with_pictures(count: int) -> conversation.History:
    """A turn with a picture of its own for each."""
    paths = [images.write_upload(png(9, f"#{number:06x}")) for number in range(count)]
    return [entry for path in paths for entry in (*conversation.user_turn("what?", path), *answered("a"))]


def stored(history: conversation.History) -> tuple[str, str, Dropped]:
    """What the browser's storage gets."""
    packed = conversation_json.pack(history)
    return json.dumps(packed.document, ensure_ascii=False), json.dumps(packed.pictures()), packed.dropped


# Limits: whoever writes and whoever reads fits a conversation with one function.

ANY_TEXT = st.text(st.characters() | st.just("\ud800"), max_size=60)  # lone surrogates too
NAMES = st.text("a_b*<é😀", max_size=255)


@st.composite
def any_turn(draw: st.DrawFn) -> conversation.History:
    colour = draw(st.none() | st.sampled_from(["red", "green", "blue", "tan"]))
    text = draw(ANY_TEXT) * draw(st.sampled_from([1, 1, 1, 9]))
    turn = conversation.user_turn(text, None if colour is None else images.write_upload(png(9, colour)))
    ending = draw(st.sampled_from(["answer", "note", "offer", "none", "running"]))
    used = SETTINGS.replace(adapter=draw(NAMES), mix=draw(NAMES), system="s" * draw(st.integers(0, 2000)))
    ids = tuple(range(draw(st.integers(0, 50))))
    line = f"{used.adapter} · {len(ids)} tokens"
    endings = {
        "answer": Entry("assistant", draw(ANY_TEXT), about=line, record=AnswerRecord(used, ids)),
        "running": Entry("assistant", "so far", about=line, record=AnswerRecord(used), pending=True),
        "note": Entry("page", draw(ANY_TEXT)),
        "offer": Entry("page", "?", options=(("a", "b"),)),
    }
    return [*turn, endings[ending]] if ending in endings else turn


HISTORIES = st.lists(any_turn(), max_size=7).map(lambda turns: [entry for turn in turns for entry in turn])
LIMITS = st.builds(
    TranscriptLimits,
    messages=st.integers(1, 20),
    text_bytes=st.integers(100, 6_000),
    pictures=st.integers(0, 4),
    picture_bytes=st.integers(0, 400),
)


def check_rest(kept: list[dict[str, Any]], whole: list[dict[str, Any]], dropped: Dropped) -> None:
    """Fails unless `kept` is `whole` without what is said to be dropped, and begins with a turn if it can."""
    rest = whole[dropped.messages :]
    pairs = list(zip(rest, kept, strict=True))
    gone = {old["picture"] for old, new in pairs if "picture" in old and "picture" not in new}
    assert len(gone) <= dropped.pictures
    for old, new in zip(rest, kept, strict=True):
        if old.get("picture") in gone:
            assert new == {"role": "page", "text": PICTURE_NOT_KEPT}
        else:
            shown = {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in old.items()}
            assert new == {**shown, **({"about": shown["about"][:500]} if "about" in shown else {})}
    if dropped.messages and not (rest and rest[0]["role"] == "user" != whole[dropped.messages - 1]["role"]):
        roles = [message["role"] for message in rest]
        assert ("page", "user") not in pairwise(roles) and ("assistant", "user") not in pairwise(roles)


@settings(MANY, max_examples=80)
@given(history=HISTORIES, limits=LIMITS | st.just(conversation_json.BROWSER))
def test_what_is_stored_is_restored_and_what_is_exported_is_imported(uploads, history, limits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation_json, "BROWSER", limits)
        text, pictures, dropped = stored(history)
        by_key, document = json.loads(pictures), json.loads(text)
        restored = from_browser(document, by_key)
        whole, kept = (
            [conversation_json._to_message(entry) for entry in conversation.ended(one)]
            for one in (history, restored)
        )
        check_rest(kept, whole, dropped)
        assert stored(restored) == (text, pictures, Dropped())
        # The file that the browser exports is what it keeps.
        imported = transcript.check({**document, "settings": {}, "pictures": by_key}, limits)
        assert not imported.dropped and conversation_json.to_history(imported.messages) == restored
    assert len(text.encode()) <= limits.text_bytes + 200
    assert len(json.loads(pictures)) <= limits.pictures
    assert sum(map(len, json.loads(pictures).values())) <= limits.picture_bytes


def test_what_is_dropped_is_said_once(uploads, toasts):
    with gr.Blocks():
        store = ConversationStore(ReadyProvider(EchoEngine()), FakeCatalog())
    shown = store.conversations.open("me", "first", [])
    for count, new in ((32, 32), (33, 1), (34, 1), (0, 0), (1, 1)):
        kept = json.loads(store.keep(shown, turns_with_pictures(count)).to_browser)["keep"]
        assert len(kept["pictures"]) == new, "the browser has the others"
        pictures = {m["picture"] for m in kept["document"]["messages"] if "picture" in m}
        assert kept["id"] == "first" and len(pictures) == min(count, 32)
    assert len(toasts) == 1 and "the oldest picture" in toasts[0] and "reload" in toasts[0]
    document = json.loads(to_file(turns_with_pictures(2))[0])
    text = json.dumps({**document, "messages": document["messages"] * 400})
    updates = store.open(gr.EventData(None, {"id": "file", "source": "file", "text": text}), event_request())
    assert "Left out" in toasts[1] and "oldest messages" in toasts[1]
    history = [one.entry for one in updates[0]]
    assert conversation.latest_picture(history) is not None
    assert store.conversations.history("me") == history


def test_an_export_holds_a_picture_once_and_decodes_it_once(uploads, monkeypatch):
    decoded, real = [], image_file._decode
    monkeypatch.setattr(image_file, "_decode", lambda data: decoded.append(data) or real(data))
    small = images.shrink(encoded(Image.effect_noise((900, 700), 80).convert("RGB")))
    assert len(small) <= images.MAX_BYTES and max(Image.open(io.BytesIO(small)).size) <= MAX_SIDE
    path = images.write_upload(small)
    history = [entry for n in range(300) for entry in (*conversation.user_turn(f"{n}?", path), *answered("a"))]
    file, dropped = to_file(history)
    assert not dropped and len(file) < 2 * len(small) + 400 * len(history)
    assert conversation_json.to_history(transcript.read(file).messages) == history
    assert len(decoded) == 1, "its small form is known"


def test_what_is_malformed_in_the_storage_costs_nothing_else(uploads):
    history = turns_with_pictures(3)
    text, pictures, _ = stored(history)
    document, by_key = json.loads(text), json.loads(pictures)
    by_key[next(iter(by_key))] = "data:image/png;base64,AAAA"  # no picture
    document["messages"][2]["record"] = {"seed": "of a later version"}
    document["messages"][5]["record"] |= {"context_tokens": 1, "context_length": 10**400}
    document["messages"].insert(3, {"role": "user", "text": 3})
    restored = from_browser(document, by_key)
    first = [PICTURE_NOT_KEPT, "what?", "a", transcript.MESSAGE_NOT_KEPT]
    assert [entry.text for entry in restored[:4]] == first and restored[4:6] == history[3:5]
    assert restored[7:] == history[6:] and [bool(restored[i].record) for i in (2, 6)] == [False, False]
    assert restored[2].about == restored[6].about == "a line · 2 tokens"


@pytest.mark.parametrize(
    "path", ["/etc/hosts", "../../../../etc/hosts", "{uploads}/../secret.png", "\0", "x" * 5000]
)
def test_no_path_leads_out_of_the_uploads(path, uploads):
    (uploads.parent / "secret.png").write_bytes(png())
    path = path.format(uploads=uploads)
    with pytest.raises(images.BadPicture, match="no longer on the server"):
        images.read_upload(path)
    link = uploads / "link.png"
    link.symlink_to(uploads.parent / "secret.png")
    with pytest.raises(images.BadPicture):
        images.read_upload(str(link))
    history = conversation.user_turn("what?", path)
    assert json.loads(to_file(history)[0])["messages"][0]["text"] == PICTURE_NOT_KEPT
    lost = from_browser(transcript.to_document([{"role": "user", "picture": path}]), {path: path})
    assert conversation.latest_picture([*conversation.user_turn("what?", "older.png"), *lost]) is None


def test_a_picture_that_many_send_at_once_is_encoded_once(monkeypatch):
    data = encoded(Image.effect_noise((800, 600), 90).convert("RGB"))
    monkeypatch.setattr(images, "_encode", encode := Mock(wraps=images._encode))
    with ThreadPoolExecutor(4) as visitors:
        assert len(set(visitors.map(images.shrink, [data] * 4))) == 1 and encode.call_count == 1


@pytest.mark.parametrize(("form", "orientation"), [("PNG", 1), ("JPEG", 6)])
def test_metadata_of_a_picture_is_removed(form, orientation):
    image = Image.new("RGB", (50, 50), "teal")
    image.paste("red", (0, 0, 24, 50))
    exif = image.getexif()
    exif[0x010E], exif[0x0112] = "the garden at home", orientation
    data = encoded(image, form, exif=exif) + b"a film of the garden"
    small = images.shrink(data)
    assert data.count(b"garden") == 2 and b"garden" not in small and images.shrink(small) == small
    with Image.open(io.BytesIO(small)) as image:
        assert (image.getpixel((40, 5))[0] > 200) == (orientation == 6), "what was on the left is above"
