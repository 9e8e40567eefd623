"""`python -m adapter` as a user runs it."""

from __future__ import annotations

import json
import math

import pytest

from adapter.__main__ import main
from adapter.checkpoint import save_adapter
from conftest import random_adapter


@pytest.fixture
def adapters(tmp_path, tiny_fingerprint):
    save_adapter(random_adapter(tiny_fingerprint, description="Rhymes."), tmp_path / "poet")
    return ["--adapters", str(tmp_path)]


def test_list_and_show(adapters, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    assert main([*adapters, "list"]) == 0
    out = capsys.readouterr().out
    assert "poet" in out and "Rhymes." in out and "cannot be used" in out
    assert main([*adapters, "show", "poet"]) == 0
    out = capsys.readouterr().out
    assert "492 in" in out and "5 in each of the topmost 3 layers" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("layer")]
    assert [row[1] for row in rows] == ["1", "2", "3"]
    assert all(24 <= int(value) <= 47 for row in rows for value in row[2:])  # tanh of .25 to .5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["show", "nobody"], "no adapter 'nobody'"),
        (["generate", "--adapter", "nobody", "hi"], "no adapter 'nobody'"),
        (["generate"], "PROMPT or --prompt-ids"),
        (["generate", "--temperature", "9", "hi"], "Temperature"),
        (["generate", "--image", "/no/such.png", "hi"], "no picture"),
        (["generate", "--base", "/no/such/folder", "hi"], "Cannot load the base"),
        (["generate", "--mix", "nobody=0.5", "hi"], "no adapter 'nobody'"),
        (["generate", "--adapter", "poet", "--mix", "poet=7", "hi"], "Strength"),
        (["generate", "--compare", "nobody", "hi"], "no adapter 'nobody'"),
    ],
)
def test_an_error_is_one_line_on_stderr(adapters, capsys, arguments, words):
    assert main([*adapters, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and words in captured.err and captured.err.count("\n") == 1


@pytest.mark.slow
def test_generate_on_the_real_base(capsys):
    greedy = ["generate", "--temperature", "0", "--max-new-tokens", "12"]
    question = "What is the capital of France?"
    assert main([*greedy, question]) == 0
    captured = capsys.readouterr()
    assert "Paris" in captured.out and "SmolLM2" in captured.err
    assert main([*greedy, "--json", "--logprobs", question]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == captured.out.strip()
    assert answer["finish_reason"] == "stop"
    assert len(answer["token_ids"]) == len(answer["logprobs"]) == answer["new_tokens"]
    assert all(-math.inf < value <= 0 for value in answer["logprobs"])
    assert main([*greedy, "--json", "--raw", "The capital of France is"]) == 0
    assert "Paris" in json.loads(capsys.readouterr().out)["text"]
    assert main([*greedy, "--json", "--prompt-ids", "504,3575,282,4649,314"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == 5


@pytest.mark.slow
def test_mix_compare_and_stop_on_the_real_base(capsys):
    greedy = ["generate", "--temperature", "0", "--max-new-tokens", "24", "--json"]
    question = "What is the capital of France?"

    def ask(*arguments):
        assert main([*greedy, *arguments, question]) == 0
        return json.loads(capsys.readouterr().out)

    found = ask("--adapter", "pirate", "--compare", "base", "--compare", "extract")
    assert list(found) == ["pirate", "base", "extract"]
    assert found["pirate"] == {**found["pirate"], **_timeless(ask("--adapter", "pirate"))}
    assert found["base"]["text"] == ask()["text"] != found["pirate"]["text"]
    assert ask("--mix", "pirate=1")["text"] == found["pirate"]["text"]
    assert ask("--mix", "pirate=0")["text"] == found["base"]["text"]
    assert ask("--stop", "Paris")["text"] == found["base"]["text"].split("Paris")[0]


def _timeless(answer):
    return {name: value for name, value in answer.items() if name in ("text", "token_ids", "finish_reason")}
