"""What a run takes from its preset, its base and the adapter that it starts from; and what it refuses."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image

from adapter.formats import official_v2
from adapter.method.checkpoint import load_adapter, read_config, save_adapter
from adapter.method.config import TuningConfig, VisionConfig
from adapter.method.vision import VisualEncoder
from tests.tiny_models import FINGERPRINT, character_tokenizer, random_adapter, tiny_config
from train import job
from train.__main__ import main
from train.config import ConfigError, presets, read_recipe, recipe_text
from train.loop import new_adapter
from train.run_setup import complete


@pytest.fixture
def command(rows, tiny_folder, tmp_path):
    """The command of a short run on the tiny base, into the folder `out`."""

    def build(*more: str, out: str = "out", base: Path = tiny_folder) -> list[str]:
        short = ["batch_size=4", "eval_every=2", "steps=2", "precision=fp32", "max_length=100"]
        place = ["--base", str(base), "--out", str(tmp_path / out), "--device", "cpu"]
        return [f"data={rows}", *short, *more, *place]

    return build


@pytest.fixture
def start(tmp_path) -> Path:
    """An adapter for the tiny base that differs from a recipe's defaults in all that it has settings for."""
    return saved(
        tmp_path / "start", template="raw", prompt_length=5, insertion_layers=3, prompt_norm=True,
        gate_activation="identity", description="An echo.",
    )  # fmt: skip


def saved(folder: Path, **config) -> Path:
    save_adapter(random_adapter(FINGERPRINT, **config), folder)
    return folder


def completed(*assignments: str, log=lambda _: None, tokenizer=None):
    recipe = read_recipe(None, ["data=a", *assignments])
    return complete(recipe, tokenizer or character_tokenizer(), tiny_config(), log)


# start_from.


def test_a_run_trains_the_adapter_that_it_starts_from_with_that_adapters_template(
    command, start, tmp_path, monkeypatch
):
    """Else it would learn one prompt and be served with another."""
    templates = []
    tokeniser = job.Tokeniser
    monkeypatch.setattr(job, "Tokeniser", lambda *a: templates.append(a[1]) or tokeniser(*a))
    assert main(command("preset=quick", f"start_from={start}", "description=New.")) == 0
    assert templates == ["raw"]
    assert read_config(tmp_path / "out") == dataclasses.replace(read_config(start), description="New.")


def test_a_preset_gives_way_to_the_adapter_and_the_written_recipe_is_read_back(start, tmp_path):
    stated = ["template=raw", "insertion_layers=-1", "prompt_norm=true", "description=New."]
    assert completed("steps=1", f"start_from={start}", *stated).train.description == "New."
    seeing = saved(tmp_path / "seeing", vision=VisionConfig("none", feature_size=8, looks="*it*", beyond="who*"))
    asked = completed("steps=1", f"start_from={seeing}", "vision.looks='*colour*'")
    assert (asked.train.vision.looks, asked.train.vision.beyond) == ("*colour*", "who*")
    recipe = completed("preset=v1", f"start_from={start}")
    assert recipe.train.description == "An echo."
    assert (recipe.train.template, recipe.train.prompt_length, recipe.train.lr) == ("raw", 5, 2.25e-3)
    for one in (recipe, asked):
        (path := tmp_path / "recipe.yaml").write_text(recipe_text(one))
        assert complete(read_recipe(path, []), character_tokenizer(), tiny_config(), print) == one


def test_a_tuning_is_added_or_taken_and_never_replaced(tmp_path, start):
    """The V2 paper's second stage adds it, and a third goes on with it."""
    second = completed("preset=v2-instructions", f"start_from={start}").train
    assert second.tuning == TuningConfig(64, norms=True, bias=True, scale=True) and second.template == "raw"
    tuned = f"start_from={saved(tmp_path / 'tuned', tuning=TuningConfig(64, norms=True))}"
    assert completed("steps=1", "learn=tuning", tuned).train.tuning == TuningConfig(64, norms=True)
    with pytest.raises(ConfigError, match="tuning.lora_rank 2 where the adapter has 0"):
        completed("steps=1", tuned, "tuning.norms=true", "tuning.lora_rank=2")


def test_a_base_without_a_chat_template_is_trained_with_alpacas():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = None
    assert completed("steps=1", tokenizer=tokenizer).train.template == "alpaca"
    with pytest.raises(ConfigError, match="This base has no chat template"):
        completed("steps=1", "template=chat", tokenizer=tokenizer)


# Presets.


@pytest.mark.parametrize(
    "settings, depth, left_out",
    [
        *((f"preset={name}", depth, n) for name, n in (("v1", 2), ("v2-captions", 1)) for depth in (30, 32)),
        ("insertion_layers=3", 4, 1), ("insertion_layers=-3", 4, 3),
    ],
)  # fmt: skip
def test_insertion_layers_are_counted_from_the_top_or_left_out_from_below(settings, depth, left_out):
    """30 of the 32 layers of LLaMA-7B in the first paper, 31 in the second, by their presets."""
    config = dataclasses.replace(read_recipe(None, ["data=a", "steps=1", settings]).train, vision=None)
    base = SimpleNamespace(fingerprint=dataclasses.replace(FINGERPRINT, num_hidden_layers=depth))
    assert new_adapter(config, base).config.layers == range(left_out, depth)


def test_the_published_presets_have_the_published_figures():
    v1, pictures, captions, instructions = (
        presets()[name]["settings"] for name in ("v1", "v1-multimodal", "v2-captions", "v2-instructions")
    )
    for settings, rate in ((v1, 9e-3), (pictures, 9e-3), (captions, 1e-4), (instructions, 1e-3)):
        assert settings["lr"] == settings["gate_lr"] == pytest.approx(rate * settings["batch_size"] / 256)
        assert settings["save"] == "last" and settings["template"] == "alpaca"
    assert (v1["epochs"], v1["warmup"], v1["batch_size"], v1["weight_decay"]) == (5, 2 / 5, 64, 0.02)
    vision = VisionConfig(**captions["vision"], token_size=768)
    assert vision.encoder == official_v2.ENCODER and vision.channels == "BGR"  # as the released checkpoints
    assert captions["prompt_length"] == 10 and captions["learn"] == "prompts"
    assert instructions["tuning"] == {"norms": True, "bias": True, "scale": True}


# Settings that would be ignored.


@pytest.mark.parametrize(
    "stated, message",
    [
        (["max_length=129"], "max_length 129 is more than the 128 tokens that this base reads"),
        (["insertion_layers=-4"], "insertion_layers -4 would be 0 of 4. Change it"),
        (["insertion_layers=5"], "insertion_layers 5 would be 5 of 4. Change it"),
        (["tuning.norms=true", "tuning.layers=5"], "tuning.layers must be at most 4, got 5"),
        (["tuning.lora_rank=33"], "tuning.lora_rank must be at most 32, got 33"),
        (["lr=true"], "'lr' must be a valid number"),
    ],
)
def test_what_the_base_or_adapter_cannot_do_is_refused_and_a_default_gives_way(start, stated, message):
    with pytest.raises(ConfigError, match=message):
        completed("steps=1", *stated)
    with pytest.raises(ConfigError, match="learn: tuning finds no tuning"):
        completed("steps=1", f"start_from={start}", "learn=tuning")
    with pytest.raises(ConfigError, match="vision.looks 'what' where the adapter has None"):
        completed("steps=1", f"start_from={start}", "vision.looks=what")
    log = []
    config = completed("steps=1", log=log.append).train
    assert (config.max_length, config.template) == (128, "chat")
    assert log == ["max_length 128: this base reads no more"]


def test_pictures_that_are_not_seen_are_told_and_missing_ones_refused(command, rows, tmp_path, capsys):
    assert main(command("vision.projection=global")) == 1
    assert "vision is set, and no record has a picture" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    records = json.loads(rows.read_text())
    rows.write_text(json.dumps([{**record, "image": "a.png"} for record in records]))
    assert main(command("--check")) == 0
    assert "the pictures of 60 records are left out: vision is not set" in capsys.readouterr().out


@pytest.fixture
def small_clip(monkeypatch) -> list[str]:
    """Makes the release's encoder small and random; lists the names that are loaded."""
    loaded: list[str] = []

    def load(name: str, device) -> VisualEncoder:
        loaded.append(name)
        small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 12, "patch_size": 112}
        return VisualEncoder(name, timm.create_model(name, pretrained=False, **small), device)

    monkeypatch.setattr("train.run_setup.load_encoder", load)
    return loaded


def test_the_two_stages_of_v2_by_their_presets(command, rows, tmp_path, small_clip):
    """Captions train prompts, gates and queries; then text, without the encoder, norms, biases and scales."""
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (30, 30), colour).save(tmp_path / f"{i}.png")
    captions = "image\tcaption\n" + "".join(f"{i % 2}.png\t{'ab'[i % 2]}\n" for i in range(8))
    (tmp_path / "captions.tsv").write_text(captions)
    small = ["vision.width=24", "vision.heads=2", "vision.blocks=1", "max_length=128", "template=raw", "lr=0.01"]
    data = f"data={tmp_path / 'captions.tsv'}"
    assert main(command("preset=v2-captions", data, *small, "gate_lr=0.01", "data.validation=0")) == 0
    assert small_clip == [official_v2.ENCODER]
    first = load_adapter(tmp_path / "out")
    assert first.config.layers == range(1, 4) and first.config.vision.channels == "BGR"
    assert first.config.vision.token_size == 12 and first.projection.visual_query.weight.shape == (10, 24)
    assert main(command("preset=v2-instructions", f"start_from={tmp_path / 'out'}", out="second")) == 0
    assert small_clip == [official_v2.ENCODER]
    second = load_adapter(tmp_path / "second")
    assert second.config == dataclasses.replace(first.config, tuning=second.config.tuning)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert all(p.abs().max() > 0 for p in second.tuning.parameters())


def test_a_form_that_cannot_be_used_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match="form: The form cannot be used: no start rule found"):
        completed("steps=1", "form='answer: \"x\"'")
