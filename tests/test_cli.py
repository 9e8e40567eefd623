"""`python -m adapter` as a user runs it, and arguments that `python app.py` refuses."""

import json
import math
import os
import sys

import pytest

from adapter.__main__ import main
from adapter.method.checkpoint import save_adapter
from adapter.server.deployment import parse
from tests.tiny_models import random_adapter


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
    "arguments, message",
    [
        (["generate", "--adapter", "nobody", "hi"], "no adapter 'nobody'"),
        (["generate", "--base", "/no/such/folder", "hi"], "no folder 'folder'. Check the path. (/no/such/folder)"),
        (["generate", "--device", "foo", "hi"], "cannot compute on 'foo'. Use 'cpu'"),
        (["generate", "--schema", __file__, "hi"], "is not JSON that can be read"),
        (["generate", "--adapter", "poet", "--mix", "poet=7", "hi"], "Strength"),
        (["generate", "--adapter", "poet", "--gate", "1=2", "--gate", "1,0=7", "hi"], "Factors of gates"),
    ],
)
def test_an_error_is_one_line_on_stderr(adapters, capsys, arguments, message):
    assert main([*adapters, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1


def test_descriptions_and_cards_are_printed_without_control_characters(tmp_path, tiny_fingerprint, capsys):
    odd = "Rhymes.\nbase         text\u2028\x1b[2J\u202e " + "x" * 48_000
    save_adapter(random_adapter(tiny_fingerprint, description=odd), tmp_path / "poet", "# poet\n\n\x1b[2Jx\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"base": {"a\\nb\\u001b": 1}}')
    for command in (["list"], ["show", "poet"]):
        assert main(["--adapters", str(tmp_path), *command]) == 0
        out = capsys.readouterr().out
        assert not {"\x1b", "\u2028", "\u202e"} & set(out) and max(map(len, out.split("\n"))) < 400
        assert "Rhymes. base text" in out and len([row for row in out.split("\n") if row.startswith("base ")]) < 2
    assert "# poet\n\n[2Jx" in out


@pytest.mark.parametrize("kind", ["pipe", "ascii"])
def test_an_output_that_breaks_or_lacks_a_character(tmp_path, tiny_fingerprint, monkeypatch, capsys, kind):
    save_adapter(random_adapter(tiny_fingerprint, description="Rhymes \U0001f99c."), tmp_path / "poet")
    reading, writing = os.pipe()
    target = writing if kind == "pipe" else tmp_path / "out"
    os.close(reading)
    if kind != "pipe":
        os.close(writing)
    with open(target, "w", encoding="ascii") as output, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        status = main(["--adapters", str(tmp_path), "list"])
    assert (status, capsys.readouterr().err) == (141 if kind == "pipe" else 0, "")
    if kind == "ascii":
        assert "Rhymes ?." in (tmp_path / "out").read_text()


def test_the_page_refuses_a_file_as_adapter_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--adapters", __file__])
    assert ended.value.code == 2 and f"--adapters: {__file__} is a file" in capsys.readouterr().err
    assert parse(["--adapters", str(tmp_path / "later")]).adapters == [tmp_path / "later"]
    assert "There is no folder" in (said := capsys.readouterr().err) and "later yet" in said


@pytest.mark.slow
def test_generate_on_the_real_base(base, monkeypatch, capsys):
    monkeypatch.setattr("adapter.__main__.load_base", lambda *_, **__: base)
    greedy = ["generate", "--temperature", "0", "--max-new-tokens", "16"]

    def ask(*arguments):
        assert main([*greedy, "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    question = "Name the capital of Italy."
    assert main([*greedy, question]) == 0
    captured = capsys.readouterr()
    assert "Rome" in captured.out and "SmolLM2" in captured.err
    answer = ask("--logprobs", "--top-logprobs", "2", question)
    assert answer["text"] == captured.out.strip() and answer["finish_reason"] == "stop"
    assert len(answer["token_ids"]) == len(answer["logprobs"]) == answer["new_tokens"]
    assert all(-math.inf < value <= 0 for value in answer["logprobs"])
    assert [one["token_id"] for one in answer["top_logprobs"]] == answer["token_ids"]
    assert [one["logprob"] for one in answer["top_logprobs"]] == answer["logprobs"]  # nothing changes the logits
    assert {len(one["top"]) for one in answer["top_logprobs"]} == {2}
    assert "Paris" in ask("--raw", "The capital of France is")["text"]
    assert main(["inspect", "--adapter", "pirate", "--max-new-tokens", "4", "Who are you?"]) == 0
    answer, _, _, *lines = capsys.readouterr().out.splitlines()
    assert "".join(eval(line.split("  ")[0]) for line in lines[:4]) == answer and "'Arr' -" in lines[0]
