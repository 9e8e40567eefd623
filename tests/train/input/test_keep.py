"""Training that keeps the base's distribution on unrelated text: the loss, the rows, and whole runs."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F

import train.input.keep
from adapter.method.config import TuningConfig, VisionConfig
from adapter.method.vision import VisualFeatures
from tests.train.conftest import ECHO
from train.input.batches import collate
from train.input.examples import Example
from train.input.keep import write_own_rows
from train.input.rows import TokenisedRow
from train.loop import new_adapter, total_divergence

VISION = VisionConfig(encoder="none", feature_size=6, hidden=8)
TUNING = TuningConfig(norms=True, bias=True, scale=True, lora_rank=2, intermediate_size=64)


def shown(seed):
    return VisualFeatures(torch.randn(1, 6, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("changes", [{}, {"tuning": TUNING}, {"vision": VISION}], ids=["text", "tuning", "vision"])
def test_the_divergence_and_its_gradient_are_those_of_plain_torch(tiny_base, changes):
    """KL(base || adapted) of the next token, over every position of every row, and of no padding: 0 at first."""
    adapter = new_adapter(dataclasses.replace(ECHO, **changes), tiny_base)
    rows = []
    for number, length in enumerate((5, 9, 7)):  # all but the first see a picture, if any does
        ids = torch.randint(95, (length,), generator=torch.Generator().manual_seed(number)).tolist()
        features = shown(number) if "vision" in changes and number else None
        rows.append(TokenisedRow(ids, ids, Example((), "", features)))
    batch = collate(rows)
    divergence = total_divergence(tiny_base.model, adapter, batch)
    divergence.backward()
    assert abs(divergence.item()) < 1e-4
    assert all(p.grad is None or p.grad.abs().max() < 1e-3 for p in adapter.parameters())

    torch.manual_seed(1)
    for parameter in adapter.parameters():  # nothing is at zero any more
        parameter.data += 0.3 * torch.randn_like(parameter)
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


@pytest.fixture
def train_keeping(train_echo, monkeypatch):
    monkeypatch.setattr(train.input.keep, "_OWN_ROWS", 8)
    return functools.partial(train_echo, keep=0.5)


def test_micro_batches_of_kept_rows_equal_the_whole(train_keeping):
    whole, pieces = (train_keeping(str(n), batch_size=6, accumulate=n, steps=4)[0] for n in (1, 3))
    torch.testing.assert_close(whole.gates, pieces.gates, rtol=1e-3, atol=1e-4)


def test_an_adapter_that_keeps_the_base_is_nearer_to_it_and_learns(train_keeping, tiny_base):
    text = collate([TokenisedRow(row, row, Example((), "")) for row in write_own_rows(tiny_base, "raw", 7, 8)])
    found = {}
    for keep in (0.0, 0.5):
        adapter, loss = train_keeping(str(keep), keep=keep, steps=24, lr=0.05, gate_lr=0.05, eval_every=24)
        with torch.no_grad():
            found[keep] = loss.loss, total_divergence(tiny_base.model, adapter, text).item() / text.supervised
    assert found[0.5][1] < 0.8 * found[0.0][1]
    assert found[0.5][0] < 5.0  # 11 at first
