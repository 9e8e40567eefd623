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

import gradio as gr
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adapter.__main__ import _parser
from adapter.base import image_file
from adapter.base.embedded import BASE
from adapter.base.image_file import MAX_SIDE
from adapter.errors import BadInput
from adapter.lru import LRU
from adapter.serve.settings import PANEL, Settings
from adapter.serve.store import SHIPPED
from adapter.server import transcript
from adapter.server.transcript import PICTURE_NOT_KEPT, Dropped, Limits
from adapter.ui import conversation, images
from adapter.ui.chat import conversation_json
from adapter.ui.chat.command_line import command_line
from adapter.ui.chat.conversation_store import ConversationStore
from adapter.ui.conversation import AnswerRecord, parse_record, parse_settings, settings_json
from adapter.ui.status import _toast_missing
from adapter.ui.texts import page as texts
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request
from tests.untrusted_json import ALMOST_TRANSCRIPT, ANY_JSON, files_touched

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


def to_file(history: conversation.History, settings: Settings = SETTINGS) -> tuple[str, Dropped]:
    """The text of an exported file, as conversations.js makes it, and what the browser does not keep."""
    document, packed = conversation_json.to_browser(history, {})
    panel = conversation_json.panel_settings(settings)
    return json.dumps({**document, "settings": panel, "pictures": packed.pictures()}), packed.dropped


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
    read = transcript.read(json.dumps({"format": transcript.FORMAT, "version": 1, "messages": messages}))
    history = conversation_json.to_history(read.messages)
    document = json.loads(to_file(history)[0])
    pictures = document["pictures"]
    again = [{**m, "picture": pictures[m["picture"]]} if "picture" in m else m for m in document["messages"]]
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


@settings(MANY, max_examples=12)
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
        restarted.setattr(images, "_small", LRU(10**6))
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
    penalty=st.floats(1, 2),
    stop=st.lists(st.sampled_from(["-x", "\n", "a b"]), max_size=4),
)
def test_the_command_line_has_the_settings(
    prompt: str, temperature: float, strength: float, seed: int, muted: list[int], penalty: float, stop: list[str]
) -> None:
    used = SETTINGS.replace(
        strength=strength, temperature=temperature, max_tokens=64, seed=seed, mix="see", mix_strength=strength,
        mute_layers=tuple(muted), mute_heads=(2,), repetition_penalty=penalty, stop=stop, system=prompt[:2000],
        top_k=3 if muted else 0,
    )  # fmt: skip
    line = command_line([*conversation.user_turn(prompt), *answered("a", used)], base(), CATALOG)
    arguments = shlex.split(line)
    assert arguments[:3] == ["python", "-m", "adapter"]
    read = _parser().parse_args(arguments[3:])
    assert (read.prompt, read.messages) == (prompt, None)
    assert (read.adapter, read.mix, read.strength) == ("pirate", [("see", strength)], strength)
    assert (read.temperature, read.top_p, read.max_new_tokens, read.seed) == (temperature, 0.75, 64, seed)
    assert (read.mute_layer, read.mute_head) == (muted, [2])
    assert (read.repetition_penalty, read.stop, read.system) == (penalty, stop, used.system)
    assert (read.top_k, read.min_p) == (used.top_k, 0.0)
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
    line = command_line(history, base("big", "none"), CATALOG)
    assert "--adapters runs generate --base big --quantization none --adapter poet" in line
    assert "/" not in line
    assert "--quantization" not in command_line(history, base("big"), CATALOG)
    for chosen in ("nf4", "none"):  # on a GPU "auto" is either
        assert f"--quantization {chosen}" in command_line(
            history, base(quantization=chosen, device="cuda"), CATALOG
        )


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
    messages = conversation_json._to_transcript(middle)
    assert messages[-1]["about"] == "x · 1 token · cut off" and messages[-1]["text"] == "Hel"
    restored = from_browser({"format": transcript.FORMAT, "version": 1, "messages": messages}, {})
    assert not conversation.is_streaming(restored) and "cut off" in displayed(restored)[-1]
    assert parse_record(conversation.record_of(restored[-1])) is None
    assert parse_settings(conversation.record_of(restored[-1])) == SETTINGS
    waiting = [*conversation.user_turn("hi"), conversation.note("…", waiting=True)]
    assert conversation_json._to_transcript(waiting)[-1] == {
        "role": "page",
        "text": texts.CUT_OFF_BEFORE_TEXT,
    }


def turns_with_pictures(count: int) -> conversation.History:
    """A turn with a picture of its own for each."""
    paths = [images.write_upload(png(9, f"#{number:06x}")) for number in range(count)]
    return [entry for path in paths for entry in (*conversation.user_turn("what?", path), *answered("a"))]


def stored(history: conversation.History) -> tuple[str, str, Dropped]:
    """What the browser's storage gets."""
    document, packed = conversation_json.to_browser(history, {})
    return json.dumps(document, ensure_ascii=False), json.dumps(packed.pictures()), packed.dropped


# Limits: whoever writes and whoever reads fits a conversation with one function.

ANY_TEXT = st.text(st.characters() | st.just("\ud800"), max_size=60)  # lone surrogates too
NAMES = st.text("a_b*<é😀", max_size=255)


@st.composite
def any_turn(draw: st.DrawFn) -> conversation.History:
    colour = draw(st.none() | st.sampled_from(["red", "green", "blue", "tan"]))
    text = draw(ANY_TEXT) * draw(st.sampled_from([1, 1, 1, 9]))
    turn = conversation.user_turn(text, None if colour is None else images.write_upload(png(9, colour)))
    turn = [conversation.forgotten(), *turn] if draw(st.booleans()) else turn
    ending = draw(st.sampled_from(["answer", "note", "offer", "none", "running"]))
    used = SETTINGS.replace(
        adapter=draw(NAMES), mix=draw(NAMES), mute_heads=tuple(range(0, draw(st.integers(0, 400)), 2))
    )
    ids = tuple(range(draw(st.integers(0, 50))))
    line = conversation.stats_line(used, len(ids), 5.0, [texts.MUTED])
    if ending == "answer":
        record = AnswerRecord(used, ids, False).to_json()
        turn += [conversation.answer(draw(ANY_TEXT)), conversation.stats(line, record=record)]
    elif ending == "running":
        record = settings_json(used)
        turn += [conversation.answer("so far"), conversation.stats(line, live=True, record=record)]
    elif ending != "none":
        turn += [conversation.note(draw(ANY_TEXT)) if ending == "note" else conversation.offer("?", [("a", "b")])]
    return turn


HISTORIES = st.lists(any_turn(), max_size=7).map(lambda turns: [entry for turn in turns for entry in turn])
LIMITS = st.builds(
    Limits,
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
def test_what_is_stored_is_restored_and_what_is_exported_is_imported(
    uploads: Path, history: conversation.History, limits: Limits
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation_json, "BROWSER", limits)
        text, pictures, dropped = stored(history)
        restored = conversation_json.from_browser(text, pictures)
        whole, kept = conversation_json._to_transcript(history), conversation_json._to_transcript(restored)
        check_rest(kept, whole, dropped)
        assert stored(restored) == (text, pictures, Dropped())
        # The file that the browser exports is what it keeps; that of version 1 had each picture in its message.
        by_key, document = json.loads(pictures), json.loads(text)
        imported = transcript.check({**document, "settings": {}, "pictures": by_key}, limits)
        assert not imported.dropped and conversation_json.to_history(imported.messages) == restored
        messages = [{**m, "picture": by_key[m["picture"]]} if "picture" in m else m for m in document["messages"]]
        old = {**document, "settings": {}, "version": 1, "messages": messages}
        assert transcript.check(old, limits).messages == imported.messages
    assert len(text.encode()) <= limits.text_bytes + 200
    assert len(json.loads(pictures)) <= limits.pictures
    assert sum(map(len, json.loads(pictures).values())) <= limits.picture_bytes


@MANY
@given(history=HISTORIES)
def test_a_link_that_is_made_opens(uploads: Path, history: conversation.History) -> None:
    try:
        packed = conversation_json.to_link(history, SETTINGS)
    except BadInput:
        return
    if history:
        opened, values = conversation_json.from_link(packed)
        assert values == conversation_json.from_stored_settings(conversation_json.panel_settings(SETTINGS))
        assert len(conversation_json._to_transcript(opened)) == len(conversation_json._to_transcript(history))


@pytest.mark.parametrize("count, text", [(1, "a" * 90_000), (5, "a" * 90_000), (1_001, "a")])
def test_a_link_that_is_short_only_when_compressed_opens_or_is_not_made(count: int, text: str) -> None:
    history = [entry for _ in range(count) for entry in (*conversation.user_turn("a"), conversation.answer(text))]
    if count == 1:
        assert conversation_json.from_link(conversation_json.to_link(history, SETTINGS))[0] == history
    else:
        with pytest.raises(BadInput, match="too long"):
            conversation_json.to_link(history, SETTINGS)


def test_a_forged_list_of_missing_adapters_makes_no_thousand_toasts(toasts: list[str]) -> None:
    """Gradio keeps each toast until its session fetches it, and a request has room for a million names."""
    _toast_missing("\n".join(map(str, range(1000))))
    assert len(toasts) <= 10


def test_what_is_dropped_is_said_once(uploads: Path, toasts: list[str]) -> None:
    with gr.Blocks():
        store = ConversationStore(ReadyProvider(EchoEngine()), FakeCatalog())  # type: ignore[arg-type]
    shown = store.conversations.open("me", "first", [])
    for count, new in ((32, 32), (33, 1), (34, 1)):
        kept = json.loads(store.keep(shown, turns_with_pictures(count)).to_browser)["keep"]
        assert len(kept["pictures"]) == new, "the browser has the others"
        pictures = {m["picture"] for m in kept["document"]["messages"] if "picture" in m}
        assert kept["id"] == "first" and len(pictures) == 32
    assert len(toasts) == 1 and "the oldest picture" in toasts[0] and "reload" in toasts[0]
    file = uploads / "export.json"
    document = json.loads(to_file(turns_with_pictures(2))[0])
    file.write_text(json.dumps({**document, "messages": document["messages"] * 400}))
    history, *_ = store.import_file(str(file), event_request())
    assert "Left out" in toasts[1] and "oldest messages" in toasts[1]
    assert conversation.latest_picture(history) is not None and store.conversations.history("me") == history


def test_an_export_holds_a_picture_once_and_decodes_it_once(
    uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, real = [], image_file._decode
    monkeypatch.setattr(image_file, "_decode", lambda data: decoded.append(data) or real(data))
    written = io.BytesIO()
    Image.effect_noise((900, 700), 80).convert("RGB").save(written, "PNG")
    encoded, encode = [], images._encode
    monkeypatch.setattr(images, "_encode", lambda image: encoded.append(image) or encode(image))
    small = images.shrink(written.getvalue())
    assert images.shrink(written.getvalue()) == small and len(encoded) == 1
    path = images.write_upload(small)
    history = [entry for n in range(300) for entry in (*conversation.user_turn(f"{n}?", path), *answered("a"))]
    file, dropped = to_file(history)
    assert not dropped and len(file) < 2 * len(small) + 400 * len(history)
    read = transcript.read(file).messages
    assert len(read) == 900 and conversation_json.to_history(read) == history
    assert len(decoded) == 1, "its small form is known"
    with pytest.MonkeyPatch.context() as restarted:
        restarted.setattr(images, "_small", LRU(10**6))
        to_file(history)
    assert len(decoded) == 2


def test_what_is_malformed_in_the_storage_costs_nothing_else(uploads: Path) -> None:
    history = turns_with_pictures(2)
    text, pictures, _ = stored(history)
    document, by_key = json.loads(text), json.loads(pictures)
    by_key[next(iter(by_key))] = "data:image/png;base64,AAAA"  # no picture
    document["messages"][2]["record"] = {"seed": "of a later version"}
    document["messages"].insert(3, {"role": "user", "text": 3})
    restored = from_browser(document, by_key)
    first = [PICTURE_NOT_KEPT, "what?", "a", "a line · 2 tokens", transcript.MESSAGE_NOT_KEPT]
    assert displayed(restored) == [*first, *displayed(history[4:])]
    assert not conversation.record_of(restored[3]) and conversation.record_of(restored[-1])


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
    assert json.loads(to_file(history)[0])["messages"][0]["text"] == PICTURE_NOT_KEPT
    stored = {"format": transcript.FORMAT, "version": 1, "messages": [{"role": "user", "picture": path}]}
    assert conversation.latest_picture(from_browser(stored, {path: path})) is None


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_metadata_of_a_picture_is_removed(form: str, orientation: int) -> None:
    image = Image.new("RGB", (50, 50), "teal")
    image.paste("red", (0, 0, 24, 50))
    exif = image.getexif()
    exif[0x010E], exif[0x0112] = "the garden at home", orientation
    written = io.BytesIO()
    image.save(written, form, exif=exif)
    data = written.getvalue() + b"a film of the garden"
    small = images.shrink(data)
    assert data.count(b"garden") == 2 and b"garden" not in small and images.shrink(small) == small
    with Image.open(io.BytesIO(small)) as image:
        top_right = image.getpixel((40, 5))
        assert (top_right[0] > 200) == (orientation == 6), "what was on the left is above"


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_small_picture_loses_its_metadata_and_no_pixel(form: str) -> None:
    image = Image.effect_noise((200, 200), 90).convert("RGB")
    bare, written = io.BytesIO(), io.BytesIO()
    image.save(bare, form)
    image.save(written, form, dpi=(300, 300), exif=image.getexif(), icc_profile=b"a profile")
    assert len(bare.getvalue()) > 60_000 or form == "JPEG"
    with Image.open(bare) as old, Image.open(io.BytesIO(images.shrink(written.getvalue()))) as new:
        assert new.format == form and new.tobytes() == old.tobytes() and "icc_profile" not in new.info


def test_a_link_holds_texts_without_pictures_and_tokens(uploads: Path) -> None:
    history = [*conversation.user_turn("what?", images.write_upload(png())), *answered("a cat")]
    opened, values = conversation_json.from_link(conversation_json.to_link(history, SETTINGS))
    assert values["adapter"] == SETTINGS.adapter and values["strength"] == SETTINGS.strength
    assert displayed(opened) == [texts.PICTURE_NOT_SENT, "what?", "a cat", "a line · 2 tokens"]
    assert (
        parse_settings(conversation.record_of(opened[-1])) == SETTINGS
        and parse_record(conversation.record_of(opened[-1])) is None
    )
    with pytest.raises(BadInput, match="too long"):
        conversation_json.to_link([conversation.answer(f"{n * n % 104_729:x}") for n in range(5000)], SETTINGS)
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
    chosen = SETTINGS.replace(stop="###\n\\n", system="Be brief.", repetition_penalty=1.25, top_k=40)
    assert chosen.stop == ("###", "\n")  # one a line; what is typed as a line break
    same = conversation_json.from_stored_settings(conversation_json.panel_settings(chosen))
    expected = {**{name: getattr(chosen, name) for name in PANEL}, "seed": "7", "stop": "###\n\\n"}
    assert same == expected and Settings.checked(same) == chosen.replace(mute_layers=(), mute_heads=())


def test_a_record_of_before_the_later_settings_has_their_defaults() -> None:
    later = {"top_k", "min_p", "repetition_penalty", "stop", "system"}
    old = {name: value for name, value in SETTINGS.model_dump().items() if name not in later}
    assert parse_settings(json.dumps(old)) == SETTINGS
    assert parse_settings(json.dumps({**old, "repetition_penalty": 3})) is None


@pytest.mark.parametrize("text", ["{}", "[]", "null", "[" * 99_999, '{"adapter": NaN}', "x" * 200_000])
def test_what_is_no_record_is_none(text: str) -> None:
    assert parse_record(text) is None and parse_settings(text) is None
