"""Recipes and `python -m train` on files: what is accepted, what is refused and with which sentence."""

import dataclasses
import json
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from adapter.base.embedded import BASE
from adapter.method.checkpoint import load_adapter
from adapter.serve.settings import SHIPPED
from tests.tiny_models import random_llama, save_base
from train.__main__ import main
from train.config import ConfigError, DataConfig, check_run, read_recipe, recipe_text
from train.input.split import FileExamples

TOO_LONG = '[{"instruction": "' + "x" * 900 + '", "output": "b"}]'


def write_recipe(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


# Recipes.


def test_a_recipe_is_read_with_groups_and_assignments(tmp_path):
    path = write_recipe(
        tmp_path, "data: {path: a.json, validation: 0.1}\nlr: 1e-3\nsteps: 5\nvision: {queries: 4}\n"
    )
    said = ["steps=7", "data.images=pictures", "vision.hidden=32", "vision={projection: global}", "precision=nf4"]
    recipe = read_recipe(path, [*said, "description=A #1"])
    assert recipe.train.name == "recipe" and recipe.train.steps == 7 and recipe.train.lr == 1e-3
    assert recipe.data == (DataConfig("a.json", images="pictures", validation=0.1),)
    assert recipe.train.vision.hidden == 32 and recipe.precision == "nf4" and recipe.train.description == "A #1"


@pytest.mark.parametrize(
    "lines, message",
    [
        ("data: a\nsteps: 1\nbatchsize: 1", "did you mean 'batch_size'"),
        ("steps: 1", "'data' is missing"),
        ("data: a", "steps or epochs must be above 0: set one of them, or a preset"),
        ("data: a\nsteps: 1\nlearn: prompts\ntuning_lr: 1", "tuning_lr has no meaning for learn: prompts"),
        ("data: {path: a, validation: 1.5}\nsteps: 1", "'data.validation' must be less than 1 or a valid string"),
        ("data: [a, {path: b, wieght: 2}]\nsteps: 1", "unknown key 'data.wieght'; did you mean 'weight'?"),
        ("data: a\nsteps: 1\nvision: {projection: label}", "choose 'global' or 'queries'"),
        ("data: {path: a, 2026-11-26: b}\nsteps: 1", "a key is no text, or a group contains itself"),
        ("data: a\nsteps: 1\ntuning: {norms: true, norms: false}", "cannot be read as YAML"),
        ("data: a\nsteps: 1\ntuning: &t\n  x: *t", "a key is no text, or a group contains itself"),
    ],
)
def test_a_wrong_recipe_is_refused_with_a_sentence(tmp_path, lines, message):
    with pytest.raises(ConfigError) as error:
        read_recipe(write_recipe(tmp_path, lines), [])
    assert message in str(error.value)


def test_a_mixture_and_a_text_with_a_colon_are_read_and_written_back(tmp_path):
    parts = "[a.json, {path: 'hf:user/name', weight: 2, split: test, config: main, validation: 0}]"
    recipe = read_recipe(None, [f"data={parts}", "steps=1", "name=x", "description=Says: hello"])
    assert recipe.train.description == "Says: hello"
    check_run(dataclasses.replace(recipe, data=recipe.data[1:]))
    for data, sentence in (
        (recipe.data, "There is no file or folder 'a.json'. Check"),
        ((), "data names no file"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            check_run(dataclasses.replace(recipe, data=data))
    of_hub = DataConfig("hf:user/name", "test", "main", validation=0.0, weight=2.0)
    assert recipe.data == (DataConfig("a.json"), of_hub)
    for again in (recipe, dataclasses.replace(recipe, data=recipe.data[:1])):
        assert read_recipe(write_recipe(tmp_path, recipe_text(again)), []) == again


# Runs.


def test_a_run_on_files_ends_in_an_adapter(run, tmp_path, tiny_base):
    assert run() == 0
    adapter = load_adapter(tmp_path / "out", tiny_base.fingerprint)
    assert adapter.gates.abs().min() > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained on rows drawn from 57 records of `rows.json`" in card and "## Scores" not in card
    weights = (tmp_path / "out" / "adapter.safetensors").read_bytes()
    words = [f"--config={tmp_path / 'out' / 'recipe.yaml'}", f"--out={tmp_path / 'again'}", "--device=cpu"]
    (tmp_path / "again" / "data").mkdir(parents=True)
    assert main([*words, "--for-page"]) == 0  # the recipe that the run wrote is the run's
    assert (tmp_path / "again" / "adapter.safetensors").read_bytes() == weights
    assert not (tmp_path / "again" / "data").exists(), "whoever started it on the page may have left"


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_every_precision_trains(run, precision, tmp_path):
    # A base with as many columns as nf4 has in a block.
    wide = save_base(random_llama(hidden_size=128, head_dim=32), tmp_path / "wide")
    assert run(f"precision={precision}", f"--base={wide}") == 0
    assert load_adapter(tmp_path / "out").gates.abs().max() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "settings",
    [["precision=bf16", "average=0.9", "keep=0.5"], ["precision=nf4"], ["precision=fp16", "clip_norm=1"]],
)
def test_a_gpu_trains_and_goes_on(run, stop_after, settings, tmp_path):
    own = [*settings, "accumulate=2", "gradient_checkpointing=true", "--device=cuda", f"--base={BASE}"]
    stop_after(3)
    assert run(*own) == 130
    assert run(*own, "--resume") == 0
    assert load_adapter(tmp_path / "out").gates.abs().max() > 0


def test_what_does_not_apply_is_refused(run, capsys, monkeypatch):
    assert main(["pirate", "--check"]) == 1
    assert "--check is for files" in capsys.readouterr().err
    assert main([]) == 1
    assert "Choose one of: extract, pirate, see, tutor" in capsys.readouterr().err
    assert run("--score") == 1
    assert "--score is for recipes of the project" in capsys.readouterr().err
    for word, sentence in (
        ("tuning_lr=0.1", "finds no tuning"),
        (f"start_from={SHIPPED / 'pirate'}", "does not fit"),
    ):
        assert run(word, "--check") == 1 and sentence in capsys.readouterr().err
    monkeypatch.setattr("train.job.total_loss", Mock(side_effect=torch.OutOfMemoryError("of 80 GB")))
    assert run() == 1 and "error: Out of memory. Raise accumulate" in capsys.readouterr().err


@pytest.mark.parametrize("name, more", [("../x", []), ("-rf", ["--check"])])
def test_an_invalid_name_is_refused_before_anything_is_read(name, more, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FileExamples, "__init__", lambda *_: pytest.fail("data was read"))
    before = set(tmp_path.rglob("*"))
    assert main([f"data={rows}", f"name={json.dumps(name)}", "preset=small", *more]) == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"error: name={name!r} cannot be used. ")
    assert output.err.count("\n") == 1 and not output.out and set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("data", "[]", "empty"),
        ("data", TOO_LONG, "Nothing to learn"),
        ("data.validation", TOO_LONG, "Nothing that was held out can be used"),
        ("data", '[{"instruction": "a>", "output": "b"}]', ""),
    ],
)
def test_unusable_data_is_explained_and_one_record_is_enough(run, tmp_path, capsys, key, text, message):
    (tmp_path / "bad.json").write_text(text)
    assert run(f"{key}={tmp_path / 'bad.json'}") == (1 if message else 0)
    assert message in capsys.readouterr().err


def test_check_reads_everything_and_trains_nothing(run, tmp_path, capsys):
    separate = tmp_path / "separate.json"
    separate.write_text('[{"instruction": "a", "output": "b"}, {"instruction": "c"}]')
    assert run(f"data.validation={separate}", "--check") == 1
    said = capsys.readouterr().out
    assert "rows.json:\n60 records" in said and "separate.json:\n2 records" in said
    assert "6 steps of up to 4 rows" in said and not (tmp_path / "out").exists()
    assert "separate.json, record 2: 'output' is missing" in said


@pytest.mark.slow
def test_a_mixture_of_pictures_and_text_is_trained_on(run, rows, tmp_path, capsys, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    images = [Image.new("RGB", (30, 30), (20 * i, 0, 0)) for i in range(12)]
    captioned = datasets.Dataset.from_dict({"image": images, "caption": [["a", "b"]] * 12})
    captioned.cast_column("image", datasets.Image()).to_parquet(tmp_path / "c.parquet")
    data = [{"path": str(tmp_path / "c.parquet"), "weight": 2.5, "validation": 0.2}, {"path": str(rows)}]
    words = [f"data={json.dumps(data)}", "vision.projection=global", "epochs=1", "steps=0"]
    assert run(*words, "--check") == 0
    said = capsys.readouterr().out
    assert (
        "c.parquet:\n24 records" in said and "rows.json:\n60 records" in said and "12 images, all opened" in said
    )
    # 20 captions of 10 pictures 2.5 times, and 57 rows, in batches of 4.
    assert "77 records of 67 pictures or conversations to learn from, 7 of 5 others held out" in said
    assert "a run would take 27 steps" in said and "no record of 'rows.json' has a picture" in said
    assert run(*words) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained on rows drawn from 77 records of `c.parquet and rows.json`" in card
    assert (load_adapter(tmp_path / "out").gates.abs().amax(1) > 0).all()
    assert read_recipe(tmp_path / "out/recipe.yaml", []).data[0].weight == 2.5
