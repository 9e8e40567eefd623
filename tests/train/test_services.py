"""What a run does beside its steps: trackers, numbered adapters, activations that are computed again."""

import json
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate import tracking
from torch.profiler import ProfilerActivity, profile

from adapter.base.decoder import set_gradient_checkpointing
from adapter.base.template import Message
from adapter.method.checkpoint import CARD, load_adapter
from adapter.serve.store import AdapterStore
from tests.train.parrot import CONFIG as PARROT
from train.config import METRICS
from train.input.batches import collate
from train.input.examples import Example
from train.input.rows import Tokeniser
from train.loop import new_adapter, total_loss
from train.run_folder import CHECKPOINTS

# Trackers.


class Notebook(tracking.GeneralTracker):
    """A tracker that keeps what it is given."""

    name = "notebook"
    requires_logging_directory = True
    pages: list[dict[str, Any]]
    settings: dict[str, Any]

    def __init__(self, run_name: str, logging_dir: str, **_: Any) -> None:
        super().__init__()
        Notebook.pages, self.run_name, self.logging_dir = [], run_name, logging_dir

    @property
    def tracker(self) -> list[dict[str, Any]]:
        return self.pages

    def store_init_configuration(self, values: dict) -> None:
        Notebook.settings = {**values}

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        self.pages.append({"step": step, **values})

    def finish(self) -> None:
        self.pages.append({"finished": True})


@pytest.fixture
def notebook(monkeypatch) -> type[Notebook]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    return Notebook


def test_a_tracker_gets_the_settings_and_the_figures_of_metrics(run, notebook, tmp_path):
    assert run("tracker=notebook", "lr=0.02", "tuning.norms=true") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    assert notebook.pages == [*lines, {"finished": True}]
    assert notebook.settings["lr"] == 0.02 and notebook.settings["tuning.norms"] is True
    assert all(isinstance(value, int | float | str | bool) for value in notebook.settings.values())


def test_a_tracker_that_fails_ends_no_run(run, notebook, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Notebook, "log", Mock(side_effect=RuntimeError("no network")))
    assert run("tracker=notebook") == 0
    assert (tmp_path / "out" / CARD).exists()
    printed = capsys.readouterr()
    assert printed.out.count("warning: the tracker ") == 1 and "no network" not in printed.out
    assert printed.err.count("no network") == 1


# Numbered adapters.


def test_every_so_many_steps_an_adapter_is_kept_that_can_be_served(run, tmp_path, tiny_base):
    assert run("checkpoint_every=2", "save=last") == 0
    numbered = AdapterStore(tmp_path / "out" / CHECKPOINTS)
    assert sorted(numbered.names()) == ["step-000002", "step-000004", "step-000006"]
    adapters = [numbered.load(name, tiny_base.fingerprint) for name in sorted(numbered.names())]
    assert len({float(adapter.gates.sum()) for adapter in adapters}) == 3
    assert torch.equal(adapters[-1].prompts, load_adapter(tmp_path / "out").prompts)
    assert AdapterStore(tmp_path).names() == ["out"]


# Activations that are computed again.


def test_gradients_are_equal_and_activations_take_less(tiny_base):
    tokeniser = Tokeniser(tiny_base.tokenizer, "raw", 128)
    rows = [Example((Message("user", "ab" * 30 + ">"),), "cd" * 20)] * 4
    batch = collate(tokeniser.rows(rows))
    adapter = new_adapter(PARROT, tiny_base)
    torch.nn.init.constant_(adapter.gates, 0.3)
    found = []
    for enabled in (False, True):
        set_gradient_checkpointing(tiny_base.model.model, enabled)
        try:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
                loss = total_loss(tiny_base.model, adapter, batch)
            kept = sum(event.self_cpu_memory_usage for event in measured.key_averages())
            adapter.zero_grad()
            loss.backward()
            found.append((kept, adapter.prompts.grad.clone(), adapter.gates.grad.clone()))
        finally:
            set_gradient_checkpointing(tiny_base.model.model, False)
    (plain, *gradients), (checkpointed, *same) = found
    assert all(map(torch.equal, gradients, same))
    assert 0 < checkpointed < plain / 3
