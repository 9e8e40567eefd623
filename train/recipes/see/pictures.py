"""The packages with the pictures of the `see` recipe, and the lists of those that it is tested on.

`python -m train.recipes.see.pictures [USE ...]` fetches all packages of `packages.tsv`, or those of one use, and unpacks
them without installing anything; it names what is missing in the end.
"""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tqdm import tqdm

from adapter.errors import AdapterError
from train.recipes.sealed_sets import SEALED, read_table
from train.recipes.see.concepts import FOLDER

UNPACKED = Path("runs/photos")
USES = ("drawings", "development", "sealed")
_DONE = ".unpacked"  # has an empty file for each package that is unpacked
_PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
_DOWNLOAD = {
    "deb": ("apt-get", "download", "{name}={version}"),
    "wheel": (*_PIP, "--only-binary=:all:", "{name}=={version}"),
    "sdist": (*_PIP, "--no-binary=:all:", "{name}=={version}"),
    "npm": ("npm", "pack", "--silent", "--ignore-scripts", "{name}@{version}"),
}
_TIMEOUT = 900  # seconds that one download may take


@dataclass(frozen=True)
class Package:
    """kind: deb, wheel, sdist or npm. use: one of USES."""

    kind: str
    name: str
    version: str
    licence: str
    use: str

    @property
    def folder(self) -> Path:
        """Where it is unpacked; every npm package needs a folder of its own, as all begin with "package/"."""
        return UNPACKED / "npm" / self.name if self.kind == "npm" else UNPACKED


@cache
def packages() -> dict[str, Package]:
    """All packages by name."""
    return {row[1]: Package(*row) for row in read_table(FOLDER / "packages.tsv")}


def find_unpacked(path: str) -> Path:
    """A file or folder of an unpacked or installed package by its path in there, which may be missing."""
    roots = (UNPACKED, Path(sysconfig.get_path("purelib")), Path("/"))
    return next((root / path for root in roots if (root / path).exists()), UNPACKED / path)


def fetch(package: Package) -> None:
    """Downloads and unpacks a package, unless that was done. Raises AdapterError if it cannot be had."""
    done = UNPACKED / _DONE / f"{package.name.replace('/', '+')}_{package.version}"
    if done.exists():
        return
    package.folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory() as download:
            _run([part.format(**vars(package)) for part in _DOWNLOAD[package.kind]], download)
            for archive in Path(download).iterdir():
                if archive.suffix == ".deb":
                    _run(["dpkg", "-x", str(archive), str(package.folder.resolve())], download)
                elif zipfile.is_zipfile(archive):  # every wheel, and some source archives
                    with zipfile.ZipFile(archive) as wheel:
                        wheel.extractall(package.folder)
                else:
                    with tarfile.open(archive) as tar:
                        tar.extractall(package.folder, filter="data")
    except (OSError, subprocess.SubprocessError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise AdapterError(
            "It cannot be fetched or unpacked. Install the program that is missing, or try again later; if its "
            "version is gone, change see/packages.tsv.",
            (getattr(error, "stderr", None) or str(error)).strip(),
        ) from error
    done.parent.mkdir(exist_ok=True)
    done.touch()


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT)


class Photo(NamedTuple):
    """An answer names what the photograph shows if it holds one of `words`."""

    file: Path
    words: list[str]


def development_photos() -> list[Photo]:
    """The photographs that the recipe is developed on."""
    return [Photo(find_unpacked(path), words.split(", ")) for path, words in read_table(FOLDER / "photos.tsv")]


def sealed_photos() -> list[Photo]:
    """221 photographs that decide nothing."""
    return [Photo(file, words.split(", ")) for file, words in sealed("photos")]


def sealed(name: str) -> list[tuple[Any, ...]]:
    """A sealed list: "photos" has accepted words, "drawings" names, "questions" kinds, questions and answers."""
    rows = read_table(SEALED / f"see_{name}.tsv")
    return [(packages()[package].folder / path, *rest) for package, path, *rest in rows]


def missing(uses: Sequence[str]) -> list[str]:
    """The pictures for `uses` that are not here; of drawings to train on none are listed."""
    files = [file for name in ("photos", "drawings") for file, _ in sealed(name)] if "sealed" in uses else []
    files += [photo.file for photo in development_photos()] if "development" in uses else []
    return [str(file) for file in files if not file.is_file()]


def main(uses: Sequence[str]) -> int:
    """Fetches the packages for `uses`, all if empty. Returns the exit status: 1 if anything is missing."""
    if unknown := set(uses) - set(USES):
        print(f"There are no pictures for '{min(unknown)}'. Choose among: {', '.join(USES)}.", file=sys.stderr)
        return 2
    uses = uses or USES
    wanted = [package for package in packages().values() if package.use in uses]
    failed = 0
    for package in tqdm(wanted, "packages", disable=None):
        try:
            fetch(package)
        except AdapterError as error:
            failed += 1
            print(f"{package.name} {package.version} is missing. {error}", error.detail, file=sys.stderr)
    lost = missing(uses)
    print(f"{len(wanted) - failed} of {len(wanted)} packages are in {UNPACKED}; {len(lost)} pictures are missing.")
    for path in lost:
        print(f"  {path}")
    return int(bool(failed or lost))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
