"""`make soak` in short, on a tiny base; and that it would notice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter.base import embedded
from adapter.method.checkpoint import save_adapter
from adapter.method.config import VisionConfig
from tests.app_process import ROOT
from tests.soak import attacks
from tests.soak.people import questions
from tests.soak.siege import GROWTH_FILES, GROWTH_MB, Figures, Report, Siege, besieged
from tests.tiny_models import endless_base, random_adapter

PICTURE = ROOT / "assets" / "examples" / "traffic-light.png"
ADAPTERS = ("one", "two", "sees")
CONTEXT = 4096  # tokens: the longest prompts are refused, as the real base does


def siege(
    folder: Path, tiny_folder: Path, fingerprint: Any, chosen: Sequence[attacks.Attack], rounds: int, **more: str
) -> Report:
    """A siege of the tiny base. chosen: the attacks; more: the server's environment."""
    vision = VisionConfig(embedded.ENCODER, feature_size=embedded_feature_size(), hidden=8)
    for seed, (name, sees) in enumerate(zip(ADAPTERS, (None, None, vision), strict=True)):
        save_adapter(random_adapter(fingerprint, seed, vision=sees), folder / "adapters" / name)
    base = endless_base(tiny_folder, folder / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    one, _, sees = (folder / "adapters" / name for name in ADAPTERS)
    arguments = ("--base", str(base), "--adapters", str(folder / "adapters"))
    environment = {"OMP_NUM_THREADS": "1", **more}
    width = config["intermediate_size"]
    with besieged(folder, one, sees, width, PICTURE, ADAPTERS, arguments, environment) as (server, attacker):
        asked = questions(ADAPTERS[:2], "sees", PICTURE, tokens=24)
        return Siege(server, asked, attacker, chosen).run(seconds=0, rounds=rounds)


def embedded_feature_size() -> int:
    config = json.loads((ROOT / "assets" / "adapters" / "see" / "config.json").read_text())
    return config["vision"]["feature_size"]


@pytest.mark.slow
def test_honest_visitors_get_under_attack_what_they_get_alone(
    tmp_path: Path, tiny_folder: Path, tiny_fingerprint: Any
) -> None:
    report = siege(tmp_path, tiny_folder, tiny_fingerprint, attacks.ATTACKS, rounds=2)
    # So short a run does not show a leak: the pictures' decoders have just been loaded.
    assert [problem for problem in report.problems if problem not in report.growth] == [], str(report)
    assert report.answers >= 2 * 2 * 16


@pytest.mark.slow
def test_honest_visitors_notice_dirty_slots(tmp_path: Path, tiny_folder: Path, tiny_fingerprint: Any) -> None:
    """The control: with an old fault put back the same siege finds it."""
    fault = {"OLD_FAULT": "dirty-slots", "POISON": ""}  # which would be noticed without an attack
    report = siege(tmp_path, tiny_folder, tiny_fingerprint, [attacks.overflow], rounds=3, **fault)
    assert report.differing or report.unanswered, str(report)


def test_the_verdict_counts_everything_that_must_not_be() -> None:
    figures = Figures(500.0, 20, 20, 0.0)
    good = {"attacks": {"flood": Counter({"429": 1})}, "figures": {"warm": figures, "end": figures}}
    assert Report(answers=5, **good).problems == []
    larger = Figures(501.0 + GROWTH_MB, 20, 21 + GROWTH_FILES, 0.0)
    for changes, count in (
        ({"differing": ["x"]}, 1),
        ({"unanswered": ["x"], "broken": ["y"]}, 2),
        ({"died": "it ended with -11"}, 1),
        ({"figures": {"warm": figures, "end": larger}}, 2),
        ({"attacks": {"flood": Counter()}}, 1),
        ({"attacks": {"flood": Counter({"soak: KeyError": 1})}}, 1),
    ):
        report = Report(**{**good, **changes})  # type: ignore[arg-type]
        assert len(report.problems) == count, changes


def test_a_response_that_tells_of_the_machine_is_a_success_of_the_attack() -> None:
    request = httpx.Request("GET", "http://here/")
    assert attacks.checked(httpx.Response(404, text="Nothing here.", request=request)) == "404"
    with pytest.raises(attacks.Broken, match="Traceback"):
        attacks.checked(httpx.Response(500, text="Traceback (most recent call last)", request=request))


def test_evil_adapters_are_finite(tmp_path: Path) -> None:
    """What is not finite is refused when it is loaded: an adapter that is refused attacks nobody."""
    from adapter.errors import LoadError
    from adapter.method.checkpoint import load_adapter

    shipped = ROOT / "assets" / "adapters"
    names = attacks.write_evil(shipped / "pirate", shipped / "see", 1536, tmp_path)
    refused = []
    for name in names:
        try:
            load_adapter(tmp_path / name)
        except LoadError:
            refused.append(name)
    assert len(names) == 8 and set(refused) <= {"lying"}
