"""Conversations in a file, a link and the browser's storage, pictures, dividers, and the command line."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adapter.__main__ import _parser
from adapter.base.embedded import BASE
from adapter.errors import BadInput
from adapter.method.image_file import MAX_SIDE, ByteLRU
from adapter.serve import transcript
from adapter.serve.settings import PANEL, Settings
from adapter.serve.store import SHIPPED
from adapter.ui import conversation, conversation_json, images
from adapter.ui.command_line import command_line
from adapter.ui.conversation import AnswerRecord, parse_record, parse_settings, settings_json
from adapter.ui.texts import page as texts
from tests.untrusted_json import ALMOST_TRANSCRIPT, ANY_JSON, files_touched

SETTINGS = Settings(adapter="pirate", seed=7, mix_strength=0.5)
MANY = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
)


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def png(side: int = 8, colour: str = "white") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(written, "PNG")
    return written.getvalue()


def answered(text: str, settings: Settings = SETTINGS, ids: tuple[int, ...] = (1, 2)) -> conversation.History:
    return [
        conversation.answer(text),
        conversation.stats("a line · 2 tokens", record=AnswerRecord(settings, ids, False).to_json()),
    ]


def from_browser(stored: Any, pictures: Any) -> conversation.History:
    return conversation_json.from_browser(json.dumps(stored), json.dumps(pictures))


def displayed(history: conversation.History) -> list[str]:
    return [conversation.page_text(e) if conversation.kind(e) else conversation.text_of(e) for e in history]


TEXTS = st.text(max_size=30)
MESSAGES = st.lists(
    st.one_of(
        st.builds(lambda t: {"role": "user", "text": t}, TEXTS),
        st.builds(lambda t: {"role": "assistant", "text": t}, TEXTS),
        st.builds(lambda t: {"role": "page", "text": t}, TEXTS),
        st.builds(
            lambda t, n: {
                "role": "assistant",
                "text": t,
                "about": "a_b · 1 *token*",
                "record": json.loads(AnswerRecord(SETTINGS.replace(seed=n), (n,), False).to_json()),
            },
            TEXTS,
            st.integers(0, 2**40),
        ),
        st.builds(
            lambda c: {"role": "user", "picture": images.data_url(png(9, c))}, st.sampled_from(["red", "blue"])
        ),
    ),
    max_size=8,
)


# Properties.


@MANY
@given(messages=MESSAGES)
def test_writing_and_reading_is_the_identity(uploads: Path, messages: list[dict[str, Any]]) -> None:
    read = transcript.read(transcript.write(messages, {}))
    history = conversation_json.to_history(read.messages)
    again = json.loads(conversation_json.to_file(history, SETTINGS))["messages"]
    cleaned = [
        {**m, "text": m["text"].encode("utf-8", "replace").decode()} if "text" in m else m for m in messages
    ]
    assert [m for m in again if m.get("text") != ""] == [m for m in cleaned if m.get("text") != ""]
    turns = [(part.role, part.text) for part in read.messages if part.role != "page"]
    assert conversation.to_messages(history) == transcript.merge_turns(turns)


@MANY
@given(stored=ANY_JSON | ALMOST_TRANSCRIPT, pictures=ANY_JSON, panel=ANY_JSON)
def test_stored_values_of_any_kind_restore_or_are_nothing(
    uploads: Path, stored: Any, pictures: Any, panel: Any
) -> None:
    with files_touched() as touched:
        history = from_browser(stored, pictures)
        values = conversation_json.from_stored_settings(panel)
    assert all(entry["role"] in ("user", "assistant") for entry in history)
    assert set(values) <= set(PANEL)
    assert not [path for path in touched if "passwd" in path]
    json.dumps([history, values], ensure_ascii=False).encode()  # what can be sent to a browser


@MANY
@given(packed=st.text(max_size=60) | st.text("abcXYZ019-_", max_size=200))
def test_a_link_of_any_kind_opens_or_is_refused(packed: str) -> None:
    with contextlib.suppress(BadInput):
        conversation_json.from_link(packed)


@settings(MANY, max_examples=25)
@given(
    side=st.integers(1, 1500),
    other=st.integers(1, 900),
    noise=st.booleans(),
    form=st.sampled_from(["PNG", "JPEG"]),
)
def test_shrinking_is_idempotent_and_bounded(side: int, other: int, noise: bool, form: str) -> None:
    image = (
        Image.effect_noise((side, other), 90).convert("RGB") if noise else Image.new("RGB", (side, other), "tan")
    )
    written = io.BytesIO()
    image.save(written, form, quality=100)
    data = images.shrink(written.getvalue())
    with pytest.MonkeyPatch.context() as restarted:
        restarted.setattr(images, "_small", ByteLRU(10**6))
        assert images.shrink(data) == data
    assert images.shrink(data) == data and len(data) <= images.MAX_BYTES
    with Image.open(io.BytesIO(data)) as small:
        assert max(small.size) <= MAX_SIDE and small.format in ("PNG", "JPEG")


chosen = st.builds(
    lambda adapter, mix: SETTINGS.replace(adapter=adapter, mix=mix),
    st.sampled_from(["", "pirate", "see"]),
    st.sampled_from(["", "extract"]),
)


@MANY
@given(turns=st.lists(chosen, max_size=6))
def test_dividers_depend_on_the_answers_alone(turns: list[Settings]) -> None:
    plain = [
        entry for n, one in enumerate(turns) for entry in (*conversation.user_turn(f"q{n}"), *answered("a", one))
    ]
    history = conversation.with_dividers(plain)
    assert conversation.with_dividers(history) == history
    assert [entry for entry in history if conversation.kind(entry) != conversation.DIVIDER] == plain
    assert conversation.to_messages(history) == conversation.to_messages(plain)
    changes = sum(a.adapters != b.adapters for a, b in pairwise(turns))
    assert len(history) - len(plain) == changes
    if turn := conversation.last_turn(history):  # undo takes the divider along
        assert history[: turn.start] == conversation.with_dividers(plain[:-3])
        before = conversation.without_last_answer(history)  # retry puts the right one
        assert conversation.with_dividers(before, turns[-1]) == history[:-2]


@MANY
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
        str.strip
    ),
    temperature=st.floats(0, 2),
    strength=st.floats(0, 2),
    seed=st.integers(0, 2**63 - 1),
    muted=st.lists(st.integers(0, 29), max_size=3),
)
def test_the_command_line_has_the_settings(
    prompt: str, temperature: float, strength: float, seed: int, muted: list[int]
) -> None:
    used = SETTINGS.replace(
        strength=strength, temperature=temperature, max_tokens=64, seed=seed, mix="see", mix_strength=strength,
        mute_layers=tuple(muted), mute_heads=(2,),
    )  # fmt: skip
    line = command_line([*conversation.user_turn(prompt), *answered("a", used)], base(), CATALOG)
    arguments = shlex.split(line)
    assert arguments[:3] == ["python", "-m", "adapter"]
    read = _parser().parse_args(arguments[3:])
    assert (read.prompt, read.messages) == (prompt, None)
    assert (read.adapter, read.mix, read.strength) == ("pirate", [("see", strength)], strength)
    assert (read.temperature, read.top_p, read.max_new_tokens, read.seed) == (temperature, 0.75, 64, seed)
    assert (read.mute_layer, read.mute_head) == (muted, [2])
    assert (read.base, read.quantization) == (BASE, "auto")


# Examples.


def base(name: str = BASE, quantization: str = "packed-int4", device: str = "cpu") -> Any:
    return SimpleNamespace(
        fingerprint=SimpleNamespace(name=name), quantization=quantization, device=torch.device(device)
    )


class FolderCatalog:
    def folder(self, name: str) -> Path:
        return Path("/home/me/runs/poet") if name == "poet" else SHIPPED / name


CATALOG: Any = FolderCatalog()


def test_the_command_line_names_no_path_of_this_machine() -> None:
    history = [*conversation.user_turn("hi"), *answered("a", SETTINGS.replace(adapter="poet"))]
    line = command_line(history, base("/data/llamas/big", "none"), CATALOG)
    assert "--adapters runs generate --base big --quantization none --adapter poet" in line
    assert "/" not in line
    assert "--quantization" not in command_line(history, base(quantization="nf4", device="cuda"), CATALOG)
    assert "--quantization int8" in command_line(history, base(quantization="int8", device="cuda"), CATALOG)


def test_the_command_line_needs_an_answer_and_reads_a_conversation_from_the_export(uploads: Path) -> None:
    first = [*conversation.user_turn("hi"), *answered("a")]
    assert (
        command_line([], base(), CATALOG)
        == command_line([*first, *conversation.user_turn("b")], base(), CATALOG)
        == ""
    )
    second = [*first, *conversation.user_turn("b"), *answered("c")]
    assert command_line(second, base(), CATALOG).endswith("--messages conversation.json")
    seen = [*conversation.user_turn("what?", images.write_upload(png())), *answered("a cat")]
    assert command_line(seen, base(), CATALOG).endswith("--messages conversation.json")


def test_an_interrupted_answer_keeps_its_settings() -> None:
    middle = [
        *conversation.user_turn("hi"),
        conversation.answer("Hel"),
        conversation.stats("x · 1 token", live=True, record=settings_json(SETTINGS)),
    ]
    messages = conversation_json._to_transcript(middle, lambda path: None)
    assert messages[-1]["about"] == "x · 1 token · cut off" and messages[-1]["text"] == "Hel"
    restored = from_browser({"format": transcript.FORMAT, "version": 1, "messages": messages}, {})
    assert not conversation.is_streaming(restored) and "cut off" in displayed(restored)[-1]
    assert parse_record(conversation.record_of(restored[-1])) is None
    assert parse_settings(conversation.record_of(restored[-1])) == SETTINGS
    waiting = [*conversation.user_turn("hi"), conversation.note("…", waiting=True)]
    assert conversation_json._to_transcript(waiting, lambda path: None)[-1] == {
        "role": "page",
        "text": texts.CUT_OFF_BEFORE_TEXT,
    }


def test_the_newest_pictures_that_fit_are_stored(uploads: Path) -> None:
    paths = [images.write_upload(png(9, colour)) for colour in ("red", "green", "blue")]
    history = [entry for path in paths for entry in (*conversation.user_turn("what?", path), *answered("a"))]
    stored, names = conversation_json.to_browser(history, {})
    every, dropped = conversation_json.stored_pictures(history)
    assert list(every) == names and dropped == 0 and "base64" not in json.dumps(stored)
    assert from_browser(stored, every) == history
    for path in paths:
        Path(path).unlink()  # Gradio deletes files by age
    assert from_browser(stored, every) == history and all(Path(path).is_file() for path in paths)
    room = len(every[names[2]]) + 60
    newest, dropped = conversation_json.stored_pictures(history, room)
    assert list(newest) == names[2:] and dropped == 2
    partly = from_browser(stored, newest)
    assert displayed(partly).count(texts.PICTURE_NOT_KEPT) == 2 and conversation.latest_picture(partly) == paths[2]


def test_the_newer_end_of_a_long_conversation_is_stored() -> None:
    history = [
        entry for n in range(60) for entry in (*conversation.user_turn(f"{n} " + "x" * 19_000), *answered("a"))
    ]
    stored, _ = conversation_json.to_browser(history, {})
    assert len(json.dumps(stored)) <= conversation_json.MAX_STORED_TEXT + 200
    assert (
        stored["messages"]
        == conversation_json._to_transcript(history, lambda path: None)[-len(stored["messages"]) :]
    )


@pytest.mark.parametrize(
    "path", ["/etc/hosts", "../../../../etc/hosts", "{uploads}/../secret.png", "\0", "x" * 5000]
)
def test_no_path_leads_out_of_the_uploads(
    path: str, uploads: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (uploads.parent / "secret.png").write_bytes(png())
    path = path.format(uploads=uploads)
    with pytest.raises(images.BadPicture, match="no longer on the server"):
        images.shrink_upload(path)
    link = uploads / "link.png"
    link.symlink_to(uploads.parent / "secret.png")
    with pytest.raises(images.BadPicture):
        images.shrink_upload(str(link))
    history = conversation.user_turn("what?", path)
    assert (
        json.loads(conversation_json.to_file(history, SETTINGS))["messages"][0]["text"] == texts.PICTURE_NOT_KEPT
    )
    stored = {"format": transcript.FORMAT, "version": 1, "messages": [{"role": "user", "picture": path}]}
    assert conversation.latest_picture(from_browser(stored, {path: path})) is None


def test_metadata_of_a_picture_is_removed() -> None:
    image = Image.new("RGB", (50, 40), "teal")
    exif = image.getexif()
    exif[0x010E], exif[0x0112] = "the garden at home", 6
    written = io.BytesIO()
    image.save(written, "JPEG", exif=exif)
    small = images.shrink(written.getvalue())
    assert b"garden" in written.getvalue() and b"garden" not in small
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == (40, 50)  # upright


def test_a_link_holds_texts_without_pictures_and_tokens(uploads: Path) -> None:
    history = [*conversation.user_turn("what?", images.write_upload(png())), *answered("a cat")]
    opened = conversation_json.from_link(conversation_json.to_link(history))
    assert displayed(opened) == [texts.PICTURE_NOT_KEPT, "what?", "a cat", "a line · 2 tokens"]
    assert (
        parse_settings(conversation.record_of(opened[-1])) == SETTINGS
        and parse_record(conversation.record_of(opened[-1])) is None
    )
    with pytest.raises(BadInput, match="too long"):
        conversation_json.to_link([conversation.answer(f"{n * n % 104_729:x}") for n in range(5000)])
    bomb = (
        conversation_json.base64.urlsafe_b64encode(conversation_json.zlib.compress(b" " * 10_000_000, 9))
        .decode()
        .rstrip("=")
    )
    with pytest.raises(BadInput):
        conversation_json.from_link(bomb[:15_000])


def test_invalid_stored_settings_are_ignored() -> None:
    assert conversation_json.from_stored_settings({"values": ["pirate", 1.5, 0.2, 0.5, 64, "12", None, 0.5]}) == {
        "adapter": "pirate", "strength": 1.5, "temperature": 0.2, "top_p": 0.5, "max_tokens": 64, "seed": "12",
        "mix": "", "mix_strength": 0.5,
    }  # fmt: skip
    wrong = {
        "adapter": "\ud800",
        "strength": 3,
        "temperature": True,
        "top_p": float("nan"),
        "seed": "x",
        "mix": [1],
    }
    assert conversation_json.from_stored_settings(wrong) == {}
    same = conversation_json.from_stored_settings(conversation_json.panel_settings(SETTINGS))
    assert same == {**{name: getattr(SETTINGS, name) for name in PANEL}, "seed": "7"}


@pytest.mark.parametrize("text", ["{}", "[]", "null", "[" * 99_999, '{"adapter": NaN}', "x" * 200_000])
def test_what_is_no_record_is_none(text: str) -> None:
    assert parse_record(text) is None and parse_settings(text) is None
