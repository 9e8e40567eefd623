"""Training that keeps the base's distribution on unrelated text: the loss, the rows, and whole runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random

import pytest
import torch
import torch.nn.functional as F

import train.input.keep
import train.job
from adapter.base.frozen_linear import freeze_linears
from adapter.base.template import Message
from adapter.method.adapter import Adapter
from adapter.method.config import TuningConfig, VisionConfig
from adapter.method.vision import VisualFeatures
from train.config import ConfigError, TrainConfig, read_recipe
from train.formats.dataset import DataError
from train.input.batches import collate
from train.input.examples import Example, SkippedExamples
from train.input.keep import OWN_TEXT, KeepRows, rows_of_file, user_header, write_own_rows
from train.input.rows import TokenisedRow, Tokeniser
from train.job import Stopped
from train.loop import _HeadLoss, new_adapter, total_divergence
from train.run_folder import METRICS, TrainError

WORDS = ("ab", "cd", "ef", "gh")
CONFIG = TrainConfig(
    "echo", steps=12, batch_size=4, prompt_length=4, template="raw", eval_every=4, held_out=8, keep=0.5
)
VISION = VisionConfig(encoder="none", feature_size=6, hidden=8)
TUNING = TuningConfig(norms=True, bias=True, scale=True, lora_rank=2, intermediate_size=64)


def examples(split):
    rng = random.Random(split)
    count = 10**6 if split == "train" else 8
    return (Example((Message("user", f"{w}>"),), w) for w in (rng.choice(WORDS) for _ in range(count)))


def shown(seed):
    return VisualFeatures(torch.randn(1, 6, generator=torch.Generator().manual_seed(seed)))


def keep_batch(pictures=False):
    """Three rows of different lengths; with `pictures` all but the first see one."""
    rows = []
    for number, length in enumerate((5, 9, 7)):
        ids = torch.randint(95, (length,), generator=torch.Generator().manual_seed(number)).tolist()
        rows.append(TokenisedRow(ids, ids, Example((), "", shown(number) if pictures and number else None)))
    return collate(rows, 0)


def opened(adapter: Adapter) -> Adapter:
    """The adapter with nothing at zero."""
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return adapter


@pytest.mark.parametrize("changes", [{}, {"tuning": TUNING}, {"vision": VISION}], ids=["text", "tuning", "vision"])
def test_the_divergence_and_its_gradient_are_those_of_plain_torch(tiny_base, changes):
    """KL(base || adapted) of the next token, over every position of every row, and of no padding: 0 at first."""
    adapter = new_adapter(dataclasses.replace(CONFIG, **changes), tiny_base)
    batch = keep_batch(pictures="vision" in changes)
    divergence = total_divergence(tiny_base.model, adapter, batch)
    divergence.backward()
    assert abs(divergence.item()) < 1e-4
    assert all(p.grad is None or p.grad.abs().max() < 1e-3 for p in adapter.parameters())

    adapter = opened(adapter)
    adapter.zero_grad()
    own = total_divergence(tiny_base.model, adapter, batch)
    own.backward()
    mine = {name: p.grad.clone() for name, p in adapter.named_parameters()}
    adapter.zero_grad()
    wanted = torch.zeros(())
    for row, length in enumerate((5, 9, 7)):
        ids = batch.input_ids[row : row + 1, :length]
        features = shown(row) if "vision" in changes and row else None
        adapted = tiny_base.model(input_ids=ids, prompt_kv=adapter(tiny_base.model, features)).logits[0, :-1]
        base = tiny_base.model(input_ids=ids).logits[0, :-1]
        logs = adapted.log_softmax(-1)
        wanted = wanted + F.kl_div(logs, base.log_softmax(-1), reduction="sum", log_target=True)
    wanted.backward()
    assert own.item() > 0.1
    torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_heads_divergence_is_the_same_in_any_number_of_pieces(is_frozen):
    torch.manual_seed(0)
    hidden, base = torch.randn(600, 16, requires_grad=True), torch.randn(600, 16)
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(16, 50, bias=False)})
    weight = model["head"].weight.detach()
    if is_frozen and not freeze_linears(model):
        pytest.skip("oneDNN's products are not built in here")
    own = _HeadLoss.apply(hidden, model["head"], base)
    (mine,) = torch.autograd.grad(own, hidden)
    logs, base_logs = (hidden @ weight.T).log_softmax(1), (base @ weight.T).log_softmax(1)
    wanted = F.kl_div(logs, base_logs, reduction="sum", log_target=True)
    (theirs,) = torch.autograd.grad(wanted, hidden)
    torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# The rows.


def test_rows_are_drawn_by_seed_and_step_and_half_of_them_see_a_picture_of_the_batch():
    texts = [[n, n, n] for n in range(50)]
    keep = KeepRows(texts, seed=3)
    batch = [TokenisedRow([1], [1], Example((), "", shown(n) if n < 2 else None)) for n in range(4)]
    drawn = [keep.draw(step, batch, 3) for step in range(40)]
    assert drawn == [KeepRows(texts, seed=3).draw(step, batch, 3) for step in range(40)]
    assert [row.ids for row in drawn[0]] != [row.ids for row in KeepRows(texts, seed=4).draw(0, batch, 3)]
    rows = list(itertools.chain(*drawn))
    assert len({row.ids[0] for row in rows}) > 40
    pictures = [row.example.features for row in rows]
    assert sum(p is not None for p in pictures) == len(rows) / 2
    assert all(any(p is b.example.features for b in batch[:2]) for p in pictures if p is not None)
    assert all(row.example.features is None for row in keep.draw(0, batch[2:], 9))


def test_a_row_is_a_part_of_a_text_as_long_as_the_longest_row_of_the_batch():
    keep = KeepRows([list(range(128))], 0)
    for longest, length in ((3, 64), (90, 90), (400, 128)):
        batch = [TokenisedRow([1] * n, [1], Example((), "")) for n in (2, longest)]
        rows = [row for step in range(30) for row in keep.draw(step, batch, 2)]
        assert all(row.ids == list(range(row.ids[0], row.ids[0] + length)) for row in rows)
        assert len({row.ids[0] for row in rows}) > 10 or length == 128


def test_a_file_is_plain_text_or_records_in_any_format(tiny_base, tmp_path):
    tokeniser, skipped = Tokeniser(tiny_base.tokenizer, "raw", 64), SkippedExamples()
    text, records = tmp_path / "prose.txt", tmp_path / "rows.jsonl"
    text.write_text("All that is said. " * 512)
    records.write_text('{"instruction": "ab>", "output": "cd"}\n{"instruction": "x"}\n')
    rows = rows_of_file(text, tokeniser, 0, skipped)
    assert len(rows) == 9 and {len(row) for row in rows} == {128}
    assert tiny_base.tokenizer.decode(rows[0])[:100] in text.read_text()
    assert rows_of_file(records, tokeniser, 0, skipped) == [[*tokeniser.text("ab>cd"), 96]]
    assert len(skipped.places) == 1
    assert KeepRows(rows, 0).digest == KeepRows([list(row) for row in rows], 1).digest
    assert KeepRows(rows, 0).digest != KeepRows(rows[1:], 0).digest


@pytest.mark.parametrize(
    "content, message", [(b"\xff\xfe\x00", "cannot be read as text"), (b" \n", "holds no text")]
)
def test_a_file_without_text_is_refused_before_training(tiny_base, tmp_path, content, message):
    path = tmp_path / "prose.txt"
    path.write_bytes(content)
    config = dataclasses.replace(CONFIG, keep_data=str(path))
    with pytest.raises((TrainError, DataError), match=message):
        train.job.train(config, tiny_base, examples, tmp_path / "run", new_adapter(config, tiny_base))
    assert not (tmp_path / "run" / METRICS).exists()
    with pytest.raises(ConfigError, match="no file or folder 'lost.txt'. Check the path of keep_data"):
        read_recipe(None, [f"data={path}", "steps=1", "keep=0.1", "keep_data=lost.txt"], to_run=True)


def test_the_base_writes_documents_and_conversations(tiny_base):
    rows = write_own_rows(tiny_base, "chat", seed=0, count=4)
    assert [len(row) for row in rows] == [128] * 4  # its whole context
    header = user_header(tiny_base.tokenizer, "chat")
    assert tiny_base.tokenizer.decode(header) == "u:"
    assert all(row[:2] == header for row in rows[2:]) and len({row[0] for row in rows[:2]}) == 2
    assert rows == write_own_rows(tiny_base, "chat", seed=0, count=4)
    assert user_header(tiny_base.tokenizer, "raw") == []


# Whole runs.


@pytest.fixture
def train_echo(tiny_base, tmp_path, monkeypatch):
    """Trains on generated words with changes to CONFIG; returns the adapter and the held-out loss."""
    monkeypatch.setattr(train.input.keep, "_OWN_ROWS", 8)

    def run(folder="run", resume=False, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        adapter = new_adapter(config, tiny_base)
        return train.job.train(config, tiny_base, examples, tmp_path / folder, adapter, resume=resume)

    return run


def test_a_resumed_run_keeps_the_same_rows_and_equals_one_that_never_stopped(train_echo, tmp_path, stop_after):
    stop_after(5)
    with pytest.raises(Stopped):
        train_echo()
    own_text = tmp_path / "run" / OWN_TEXT
    content = own_text.read_text()
    own_text.write_text(content[content.index("\n") + 1 :])
    with pytest.raises(TrainError, match="text of keep has changed"):
        train_echo(resume=True)
    own_text.write_text(content)
    resumed, _ = train_echo(resume=True)
    whole, _ = train_echo("whole")
    assert torch.equal(resumed.prompts, whole.prompts) and torch.equal(resumed.gates, whole.gates)
    found = [
        [
            line["divergence"]
            for line in map(json.loads, (tmp_path / name / METRICS).open())
            if "divergence" in line
        ]
        for name in ("run", "whole")
    ]
    assert found[0] == found[1] and len(found[0]) == 12


def test_micro_batches_of_kept_rows_equal_the_whole(train_echo):
    whole, pieces = (train_echo(str(n), batch_size=6, accumulate=n, steps=4)[0] for n in (1, 3))
    torch.testing.assert_close(whole.gates, pieces.gates, rtol=1e-3, atol=1e-4)


def test_an_adapter_that_keeps_the_base_is_nearer_to_it_and_learns(train_echo, tiny_base):
    text = collate([TokenisedRow(row, row, Example((), "")) for row in write_own_rows(tiny_base, "raw", 7, 8)], 0)
    found = {}
    for keep in (0.0, 0.5):
        adapter, loss = train_echo(str(keep), keep=keep, steps=24, lr=0.05, gate_lr=0.05, eval_every=24)
        with torch.no_grad():
            found[keep] = loss.loss, total_divergence(tiny_base.model, adapter, text).item() / text.supervised
    assert found[0.5][1] < 0.8 * found[0.0][1]
    assert found[0.5][0] < 5.0  # 11 at first
