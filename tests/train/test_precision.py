"""The precision that "auto" chooses to train in, by what the processor says of itself."""

import json

import pytest
import torch

from adapter.method.checkpoint import CARD
from train import job
from train.precision import choose_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


@pytest.mark.parametrize(
    "has, limits, chosen, reason",
    [
        ({"avx512_bf16": True}, {}, "bf16", "avx512_bf16"),
        ({"avx512_vnni": True, "avx512_bf16": False}, {}, "fp32", "no bf16"),
        ({"avx512_bf16": True}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "fp32", "ONEDNN_MAX_CPU_ISA"),
    ],
)
def test_bf16_is_chosen_where_the_processor_multiplies_it(monkeypatch, has, limits, chosen, reason):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    precision, why = choose_precision("auto", CPU)
    assert precision == chosen and reason in why
    # Apple's processors have bf16 instructions, but torch has no products there that use them.
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision("auto", CPU)[0] == "fp32"


# fp16, whose gradients need a loss scale.


@pytest.fixture
def norms(run, tmp_path):
    """Trains on the tiny base; returns the norm of each step's gradients."""

    def norms(*more: str) -> list[float]:
        (tmp_path / "out" / CARD).unlink(missing_ok=True)  # a finished adapter is not written over
        assert run("steps=9", "held_out=4", *more) == 0
        lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
        return [line["gradient_norm"] for line in lines if "gradient_norm" in line]

    return norms


def test_fp16_trains_like_fp32_and_so_does_what_accelerate_was_asked_for(norms, tmp_path, monkeypatch, capsys):
    plain = norms("precision=fp32")
    assert norms("precision=fp16") == pytest.approx(plain, rel=0.05)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # as its launcher tells its processes
    assert norms("precision=auto") == pytest.approx(plain, rel=0.05)
    assert "precision fp16: as accelerate was asked for" in capsys.readouterr().out
    assert norms("precision=fp32") == plain
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    assert norms("precision=auto") == plain
    assert "precision fp32: this processor has no bf16 products\n" in capsys.readouterr().out
    assert "precision: fp32" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_a_step_that_overflows_fp16_is_left_out_and_the_scale_is_halved(norms, monkeypatch, capsys):
    """The scale that a run begins with is far too large. A run that is resumed goes on with the one it had."""
    scaler, scales = torch.amp.GradScaler, []
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *args, **options: scaler(*args, **{**options, "init_scale": 2.0**18})
    )
    update = scaler.update
    monkeypatch.setattr(scaler, "update", lambda self: (update(self), scales.append(self.get_scale())))
    found = norms("precision=fp16", "clip_norm=1")
    output, left_out = capsys.readouterr().out, 9 - len(found)  # what is not finite is not recorded
    assert 0 < left_out < 8 and output.count("the loss scale of fp16 halved") == left_out
    assert scales == sorted(scales, reverse=True) and scales[-1] == 2.0 ** (18 - left_out)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_steps_without_a_row_come_before_those_that_learn(norms, run, rows, capsys, monkeypatch, precision):
    """Nor does patience end the run meanwhile; its end says so if none has come."""
    good = rows.rename(rows.with_name("validation.json"))
    records = [{"instruction": "too long " * 200, "output": "x"}] * 9 + [{"instruction": "a", "output": "b"}]
    rows.write_text(json.dumps(records))
    more = "batch_size=1", "eval_every=1", "steps=20", "patience=2", "seed=3"
    found = norms(f"precision={precision}", f"data.validation={good}", *more)
    assert found[:3] == [0, 0, 0] and max(found) > 0
    assert run(f"precision={precision}", f"data.validation={good}", *more, "steps=3", out="short") == 1
    assert "Nothing was learnt" in capsys.readouterr().err
    monkeypatch.setattr(job, "_MOST_EMPTY_STEPS", 3)  # as where all pictures are deleted meanwhile
    assert run(f"precision={precision}", f"data.validation={good}", *more, out="without") == 1
    assert "Nothing was learnt in 3 steps in a row" in capsys.readouterr().err
