"""An adapter from the Hub, a stand-in of it: added like an uploaded one, or refused with nothing kept."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapter.errors import AdapterError
from adapter.formats.hub import PICKLES
from adapter.method.checkpoint import WEIGHTS, save_adapter
from adapter.serve.store import AdapterStore
from adapter.server import adapter_upload as upload
from tests.fake_hub import COMMIT, FakeHub, fake_hub
from tests.tiny_models import random_adapter


@pytest.fixture
def hub(tmp_path: Path, tiny_fingerprint: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    (tmp_path / "uploads").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_machine")
    save_adapter(random_adapter(tiny_fingerprint), tmp_path / "poet", "# poet\n")
    with fake_hub() as hub:
        hub.add("some.body/my.poet", tmp_path / "poet", **{"notes.txt": b"x", "recipe.yaml": b"x"})
        yield hub


def test_an_adapter_of_the_hub_becomes_one_of_the_pages(hub, tmp_path, tiny_fingerprint):
    store = AdapterStore(tmp_path / "runs", incoming=tmp_path / "runs")
    added = upload.add_from_hub(" some.body/my.poet@main ", "", store, tiny_fingerprint, token=False)
    assert added == ("my-poet", True) and store.card_text("my-poet") == "# poet"
    assert not any(hub.tokens), "without a login that is not the visitor's"
    assert not any("notes" in path or "recipe" in path for path in hub.paths)
    assert f"/some.body/my.poet/resolve/{COMMIT}/{WEIGHTS}" in hub.paths
    assert upload.add_from_hub("some.body/my.poet", "bard", store, tiny_fingerprint, "hf_own")[0] == "bard"
    assert set(filter(None, hub.tokens)) == {"Bearer hf_own"}


@pytest.mark.parametrize(
    ("attack", "said"),
    [*((f"weights{ending}", "can hold code") for ending in PICKLES[:2]), ("../../adapter.safetensors", "outside"),
     ("a\\..\\b.json", "outside"), ("said to be large", "more than"), ("larger than said", "more than"),
     ("wrong base", "huge"), ("empty", "holds no adapter"), ("unknown", "no 'some.body/other'"),
     ("down", "Cannot fetch"), ("no name", "owner/name")],
)  # fmt: skip
def test_what_is_wrong_with_a_repository_is_said_and_nothing_is_kept(
    attack, said, hub, tmp_path, tiny_fingerprint, monkeypatch
):
    name, base, store = "some.body/my.poet", tiny_fingerprint, AdapterStore(incoming=tmp_path / "runs")
    files = hub.files[name]
    if "." in attack:
        files[attack] = b"x"
    elif attack == "said to be large":
        hub.sizes[WEIGHTS] = upload.MAX_BYTES + 1
    elif attack == "larger than said":
        hub.sizes = dict.fromkeys(files, 10)
        monkeypatch.setattr(upload, "MAX_BYTES", 2_000)
    elif attack == "wrong base":
        base = replace(base, name="huge", hidden_size=64)
    elif attack == "empty":
        files.clear()
    hub.down = attack == "down"
    name = {"unknown": "some.body/other", "no name": "../etc/passwd"}.get(attack, name)
    with pytest.raises(AdapterError, match=said) as refusal:
        upload.add_from_hub(name, "", store, base, token=False)
    assert str(tmp_path) not in str(refusal.value)
    assert not [path for place in ("runs", "uploads") for path in (tmp_path / place).rglob("*") if path.is_file()]
    fetched = [path for path in hub.paths if "resolve" in path]
    assert bool(fetched) is (attack in ("larger than said", "wrong base"))
