"""Conversations beyond the page: as files, links and kept values, by whomever; dividers; the command line."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import sysconfig
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adapter.__main__ import _parser, main
from adapter.base.embedded import BASE
from adapter.base.template import Message
from adapter.errors import BadInput
from adapter.serve import transcript
from adapter.serve.settings import PANEL, Settings
from adapter.serve.store import SHIPPED
from adapter.ui import command_line as code
from adapter.ui import conversation as talk
from adapter.ui import conversation_json as kept
from adapter.ui import dividers
from adapter.ui import images as pictures
from adapter.ui.answer_record import Record, read_record, read_settings, settings_text
from adapter.ui.texts import page as texts

SETTINGS = Settings(adapter="pirate", seed=7, mix_strength=0.5)
FREELY = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
)
opened: list[str] = []
watching: list[int] = []  # threads; a hook cannot be taken off again


FILES = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove")
IMPORTS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in FILES or threading.get_ident() not in watching:
        return
    if not str(arguments[0]).startswith(IMPORTS):  # a late import, as of a codec
        opened.append(str(arguments[0]))


sys.addaudithook(_watch)


@contextlib.contextmanager
def files_touched() -> Iterator[list[str]]:
    opened.clear()
    watching.append(threading.get_ident())
    try:
        yield opened
    finally:
        watching.pop()


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def png(side: int = 8, colour: str = "white") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(written, "PNG")
    return written.getvalue()


def answered(text: str, chosen: Settings = SETTINGS, ids: tuple[int, ...] = (1, 2)) -> talk.History:
    return [talk.answer(text), talk.stats("a line · 2 tokens", record=Record(chosen, ids, False).to_text())]


def shown(history: talk.History) -> list[str]:
    return [talk.plain(e) if talk.kind(e) else talk.words(e) for e in history]


words = st.text(max_size=30)
messages = st.lists(
    st.one_of(
        st.builds(lambda t: {"role": "user", "text": t}, words),
        st.builds(lambda t: {"role": "assistant", "text": t}, words),
        st.builds(lambda t: {"role": "page", "text": t}, words),
        st.builds(
            lambda t, n: {
                "role": "assistant",
                "text": t,
                "about": "a_b · 1 *token*",
                "record": json.loads(Record(SETTINGS.replace(seed=n), (n,), False).to_text()),
            },
            words,
            st.integers(0, 2**40),
        ),
        st.builds(
            lambda c: {"role": "user", "picture": pictures.data_url(png(9, c))}, st.sampled_from(["red", "blue"])
        ),
    ),
    max_size=8,
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(
        ["/etc/passwd", "file:///etc/passwd", "../../../etc/passwd", "data:image/png;base64,AAAA", "user", "page"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["role", "text", "picture", "about", "record", "path", "messages", "values", "settings"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
part = st.builds(
    lambda role, rest: {**rest, "role": role},
    st.sampled_from(["user", "assistant", "page", "system"]),
    st.dictionaries(st.sampled_from(["text", "picture", "about", "record", "path"]), anything, max_size=4),
)
nearly = st.builds(
    lambda version, found, chosen: {
        "format": transcript.FORMAT,
        "version": version,
        "messages": found,
        "settings": chosen,
    },
    st.sampled_from([1, 1, 1, 2, True, "1"]),
    st.lists(part, max_size=4) | anything,
    anything,
)


# Laws.


@FREELY
@given(found=messages)
def test_what_is_written_reads_the_same(uploads: Path, found: list[dict[str, Any]]) -> None:
    read = transcript.read(transcript.write(found, {}))
    history = kept.history_of(read.parts)
    again = json.loads(kept.to_file(history, SETTINGS))["messages"]
    cleaned = [{**m, "text": m["text"].encode("utf-8", "replace").decode()} if "text" in m else m for m in found]
    assert [m for m in again if m.get("text") != ""] == [m for m in cleaned if m.get("text") != ""]
    said = [part for part in read.parts if part.role != "page"]
    assert talk.to_messages(history) == transcript.join((part.role, part.text) for part in said)


@FREELY
@given(data=anything | nearly)
def test_an_import_raises_one_kind_of_error_and_touches_no_file(data: Any) -> None:
    with files_touched() as touched:
        with contextlib.suppress(BadInput):
            transcript.check(data)
        with contextlib.suppress(BadInput):
            transcript.read(json.dumps(data))
    assert touched == []


@FREELY
@given(text=st.text() | st.binary() | st.just("[" * 100_000) | st.just('{"a":' * 5000) | st.just("9" * 5000))
def test_a_file_of_any_kind_is_refused_with_a_sentence(text: str | bytes) -> None:
    with files_touched() as touched, pytest.raises(BadInput):
        transcript.read(text)
    assert touched == []


@FREELY
@given(words=anything | nearly, shown=anything, panel=anything)
def test_kept_values_of_any_kind_restore_or_are_nothing(uploads: Path, words: Any, shown: Any, panel: Any) -> None:
    with files_touched() as touched:
        history = kept.from_browser(words, shown)
        values = kept.kept_values(panel)
    assert all(entry["role"] in ("user", "assistant") for entry in history)
    assert set(values) <= set(PANEL)
    assert not [path for path in touched if "passwd" in path]
    json.dumps([history, values], ensure_ascii=False).encode()  # what a browser can be told


@FREELY
@given(packed=st.text(max_size=60) | st.text("abcXYZ019-_", max_size=200))
def test_a_link_of_any_kind_opens_or_is_refused(packed: str) -> None:
    with contextlib.suppress(BadInput):
        kept.from_link(packed)


@settings(FREELY, max_examples=25)
@given(
    side=st.integers(1, 1500),
    other=st.integers(1, 900),
    noise=st.booleans(),
    form=st.sampled_from(["PNG", "JPEG"]),
)
def test_the_small_form_is_small_and_stays_as_it_is(side: int, other: int, noise: bool, form: str) -> None:
    image = (
        Image.effect_noise((side, other), 90).convert("RGB") if noise else Image.new("RGB", (side, other), "tan")
    )
    written = io.BytesIO()
    image.save(written, form, quality=100)
    data = pictures.small(written.getvalue())
    assert pictures.small(data) == data and len(data) <= pictures.MAX_BYTES
    with Image.open(io.BytesIO(data)) as small:
        assert max(small.size) <= pictures.SIDE and small.format in ("PNG", "JPEG")


chosen = st.builds(
    lambda adapter, mix: SETTINGS.replace(adapter=adapter, mix=mix),
    st.sampled_from(["", "pirate", "see"]),
    st.sampled_from(["", "extract"]),
)


@FREELY
@given(turns=st.lists(chosen, max_size=6))
def test_dividers_follow_from_the_answers_alone(turns: list[Settings]) -> None:
    plain = [entry for n, one in enumerate(turns) for entry in (*talk.user_turn(f"q{n}"), *answered("a", one))]
    history = dividers.divided(plain)
    assert dividers.divided(history) == history
    assert [entry for entry in history if talk.kind(entry) != talk.DIVIDER] == plain
    assert talk.to_messages(history) == talk.to_messages(plain)
    changes = sum(dividers.answerer(a) != dividers.answerer(b) for a, b in pairwise(turns))
    assert len(history) - len(plain) == changes
    if turn := talk.last_turn(history):  # undo takes the divider along
        assert history[: turn.start] == dividers.divided(plain[:-3])
        before = talk.without_answer(history)  # retry puts the right one
        assert dividers.divided(before, turns[-1]) == history[:-2]


@FREELY
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
        str.strip
    ),
    temperature=st.floats(0, 2),
    strength=st.floats(0, 2),
    seed=st.integers(0, 2**63 - 1),
    muted=st.lists(st.integers(0, 29), max_size=3),
)
def test_the_command_says_what_the_settings_say(
    prompt: str, temperature: float, strength: float, seed: int, muted: list[int]
) -> None:
    said = SETTINGS.replace(
        strength=strength, temperature=temperature, max_tokens=64, seed=seed, mix="see", mix_strength=strength,
        mute_layers=tuple(muted), mute_heads=(2,),
    )  # fmt: skip
    line = code.command([*talk.user_turn(prompt), *answered("a", said)], base(), SHELF)
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


class Folders:
    def folder(self, name: str) -> Path:
        return Path("/home/me/runs/poet") if name == "poet" else SHIPPED / name


SHELF: Any = Folders()


def test_the_command_names_base_folders_and_precision_but_no_machine() -> None:
    history = [*talk.user_turn("hi"), *answered("a", SETTINGS.replace(adapter="poet"))]
    line = code.command(history, base("/data/llamas/big", "none"), SHELF)
    assert "--adapters runs generate --base big --quantization none --adapter poet" in line
    assert "/" not in line
    assert "--quantization" not in code.command(history, base(quantization="nf4", device="cuda"), SHELF)
    assert "--quantization int8" in code.command(history, base(quantization="int8", device="cuda"), SHELF)


def test_the_command_needs_an_answer_and_takes_the_file_for_a_conversation(uploads: Path) -> None:
    first = [*talk.user_turn("hi"), *answered("a")]
    assert code.command([], base(), SHELF) == code.command([*first, *talk.user_turn("b")], base(), SHELF) == ""
    second = [*first, *talk.user_turn("b"), *answered("c")]
    assert code.command(second, base(), SHELF).endswith("--messages conversation.json")
    seen = [*talk.user_turn("what?", pictures.to_uploads(png())), *answered("a cat")]
    assert code.command(seen, base(), SHELF).endswith("--messages conversation.json")


def test_a_cut_answer_is_kept_with_what_gives_it_again() -> None:
    middle = [
        *talk.user_turn("hi"),
        talk.answer("Hel"),
        talk.stats("x · 1 token", live=True, record=settings_text(SETTINGS)),
    ]
    found = kept.messages_of(middle, lambda path: None)
    assert found[-1]["about"] == "x · 1 token · cut off" and found[-1]["text"] == "Hel"
    restored = kept.from_browser({"format": transcript.FORMAT, "version": 1, "messages": found}, {})
    assert not talk.being_answered(restored) and "cut off" in shown(restored)[-1]
    assert read_record(talk.record_of(restored[-1])) is None
    assert read_settings(talk.record_of(restored[-1])) == SETTINGS
    waiting = [*talk.user_turn("hi"), talk.note("…", waiting=True)]
    assert kept.messages_of(waiting, lambda path: None)[-1] == {"role": "page", "text": texts.CUT_OFF_AT_ONCE}


def test_pictures_are_kept_beside_the_words_the_newest_first_to_stay(uploads: Path) -> None:
    paths = [pictures.to_uploads(png(9, colour)) for colour in ("red", "green", "blue")]
    history = [entry for path in paths for entry in (*talk.user_turn("what?", path), *answered("a"))]
    words, names = kept.to_browser(history, {})
    every, dropped = kept.pictures_of(history)
    assert list(every) == names and dropped == 0 and "base64" not in json.dumps(words)
    assert kept.from_browser(words, every) == history
    for path in paths:
        Path(path).unlink()  # the daily deletion
    assert kept.from_browser(words, every) == history and all(Path(path).is_file() for path in paths)
    room = len(every[names[2]]) + 60
    newest, dropped = kept.pictures_of(history, room)
    assert list(newest) == names[2:] and dropped == 2
    assert list(kept.fewer(every)) == names[2:] and kept.fewer({"a": "b"}) == {} == kept.fewer("x")
    partly = kept.from_browser(words, newest)
    assert shown(partly).count(texts.PICTURE_NOT_KEPT) == 2 and talk.latest_picture(partly) == paths[2]


def test_a_long_conversation_is_kept_from_its_newer_end() -> None:
    history = [entry for n in range(60) for entry in (*talk.user_turn(f"{n} " + "x" * 19_000), *answered("a"))]
    words, _ = kept.to_browser(history, {})
    assert len(json.dumps(words)) <= kept.MAX_KEPT_TEXT + 200
    assert words["messages"] == kept.messages_of(history, lambda path: None)[-len(words["messages"]) :]


@pytest.mark.parametrize(
    "path", ["/etc/hosts", "../../../../etc/hosts", "{uploads}/../secret.png", "\0", "x" * 5000]
)
def test_no_path_leads_out_of_the_uploads(
    path: str, uploads: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (uploads.parent / "secret.png").write_bytes(png())
    path = path.format(uploads=uploads)
    with pytest.raises(pictures.BadPicture, match="no longer on the server"):
        pictures.adopt(path)
    link = uploads / "link.png"
    link.symlink_to(uploads.parent / "secret.png")
    with pytest.raises(pictures.BadPicture):
        pictures.adopt(str(link))
    history = talk.user_turn("what?", path)
    assert json.loads(kept.to_file(history, SETTINGS))["messages"][0]["text"] == texts.PICTURE_NOT_KEPT
    words = {"format": transcript.FORMAT, "version": 1, "messages": [{"role": "user", "picture": path}]}
    assert talk.latest_picture(kept.from_browser(words, {path: path})) is None


def test_what_a_camera_notes_in_a_picture_is_left_out() -> None:
    image = Image.new("RGB", (50, 40), "teal")
    exif = image.getexif()
    exif[0x010E], exif[0x0112] = "the garden at home", 6
    written = io.BytesIO()
    image.save(written, "JPEG", exif=exif)
    small = pictures.small(written.getvalue())
    assert b"garden" in written.getvalue() and b"garden" not in small
    with Image.open(io.BytesIO(small)) as found:
        assert found.size == (40, 50)  # upright


def test_a_link_has_the_words_and_no_pictures_or_tokens(uploads: Path) -> None:
    history = [*talk.user_turn("what?", pictures.to_uploads(png())), *answered("a cat")]
    opened = kept.from_link(kept.to_link(history))
    assert shown(opened) == [texts.PICTURE_NOT_KEPT, "what?", "a cat", "a line · 2 tokens"]
    assert (
        read_settings(talk.record_of(opened[-1])) == SETTINGS and read_record(talk.record_of(opened[-1])) is None
    )
    with pytest.raises(BadInput, match="too long"):
        kept.to_link([talk.answer(f"{n * n % 104_729:x}") for n in range(5000)])
    bomb = kept.base64.urlsafe_b64encode(kept.zlib.compress(b" " * 10_000_000, 9)).decode().rstrip("=")
    with pytest.raises(BadInput):
        kept.from_link(bomb[:15_000])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "no conversation"),
        ({"version": 2}, "version"),
        ({"messages": None}, "missing"),
        ({"messages": [{"role": "user", "text": "x"}] * 2001}, "2,001 messages"),
        ({"messages": [{"role": "user", "text": "x" * 100_001}]}, "100,001 characters"),
        ({"messages": [{"role": "user", "text": 3}]}, "Message 1"),
        ({"messages": [{"role": "system", "text": "x"}]}, "roles"),
        ({"messages": [{"role": "user", "picture": "/etc/hosts"}]}, "data URL"),
        ({"messages": [{"role": "user", "picture": "data:image/png;base64,A"}]}, "data URL"),
        ({"messages": [{"role": "user", "picture": "data:image/png;base64,AAAA"}] * 33}, "33 pictures"),
        ({"messages": [{"role": "assistant", "text": "x", "about": "y", "record": [1]}]}, "record"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(change: dict[str, Any], words: str) -> None:
    right = {"format": transcript.FORMAT, "version": 1, "messages": []}
    assert transcript.check(right) == transcript.Transcript(())
    with pytest.raises(BadInput, match=words):
        transcript.check({**right, **change})


def test_settings_that_cannot_be_are_left_alone() -> None:
    assert kept.kept_values({"values": ["pirate", 1.5, 0.2, 0.5, 64, "12", None, 0.5]}) == {
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
    assert kept.kept_values(wrong) == {}
    same = kept.kept_values(kept.side_panel(SETTINGS))
    assert same == {**{name: getattr(SETTINGS, name) for name in PANEL}, "seed": "7"}


@pytest.mark.parametrize("text", ["{}", "[]", "null", "[" * 99_999, '{"adapter": NaN}', "x" * 200_000])
def test_a_record_that_is_none(text: str) -> None:
    assert read_record(text) is None and read_settings(text) is None


def test_messages_of_a_file_are_what_the_page_asked(tmp_path: Path) -> None:
    found = [
        {"role": "user", "picture": pictures.data_url(png())},
        {"role": "user", "text": "what?"},
        {"role": "assistant", "text": "a cat"},
        {"role": "page", "text": "a remark"},
        {"role": "user", "text": "really?"},
        {"role": "assistant", "text": "yes"},
    ]
    messages, picture = transcript.read(transcript.write(found, {})).to_answer()
    assert messages == (Message("user", "what?"), Message("assistant", "a cat"), Message("user", "really?"))
    assert picture == png()


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), ("{}", "no conversation"), ("x", "not JSON")]
)
def test_a_file_that_cannot_be_answered_is_one_line(
    content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talk.json"
    if content is not None:
        file.write_text(content)
    assert main(["generate", "--messages", str(file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1
    assert main(["generate", "--messages", str(file), "hello"]) == 1
    assert "--messages" in capsys.readouterr().err
