"""The packages with the pictures of the `see` recipe, and the lists of those that it is tested on.

`python -m train.recipes.see.pictures [USE ...]` fetches all packages of `packages.tsv`, or those of one use, and unpacks
them without installing anything; it names what is missing in the end.
"""

from __future__ import annotations

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

from tqdm import tqdm

from adapter.errors import AdapterError
from train.recipes.sealed_sets import SEALED
from train.recipes.see.names import FOLDER, is_named
from train.recipes.text_data import table

UNPACKED = Path("runs/photos")
USES = ("drawings", "development", "sealed")
_DONE = ".unpacked"  # has an empty file for each package that is unpacked
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
    return {row[1]: Package(*row) for row in table(FOLDER / "packages.tsv")}


def find_unpacked(path: str) -> Path | None:
    """A file or folder of an unpacked or installed package by its path in there, None if it is missing."""
    roots = (UNPACKED, Path(sysconfig.get_path("purelib")), Path("/"))
    return next((root / path for root in roots if (root / path).exists()), None)


def fetch(package: Package) -> None:
    """Downloads and unpacks a package, unless that was done. Raises AdapterError if it cannot be had."""
    done = UNPACKED / _DONE / f"{package.name.replace('/', '+')}_{package.version}"
    if done.exists():
        return
    package.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as download:
        _run(_download_command(package), download)
        try:
            for archive in Path(download).iterdir():
                _unpack(archive, package.folder)
        except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise AdapterError("Its archive cannot be unpacked here.", str(error)) from error
    done.parent.mkdir(exist_ok=True)
    done.touch()


def _download_command(package: Package) -> list[str]:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    return {
        "deb": ["apt-get", "download", f"{package.name}={package.version}"],
        "wheel": [*pip, "--only-binary=:all:", f"{package.name}=={package.version}"],
        "sdist": [*pip, "--no-binary=:all:", f"{package.name}=={package.version}"],
        "npm": ["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"],
    }[package.kind]


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        _run(["dpkg", "-x", str(archive), str(folder.resolve())], str(archive.parent))
    elif zipfile.is_zipfile(archive):  # every wheel, and some source archives
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")


def _run(command: list[str], folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
    except FileNotFoundError as error:
        raise AdapterError(f"There is no {command[0]} here. Install it; Debian has all of them.") from error
    except subprocess.SubprocessError as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip()
        raise AdapterError(
            "It could not be fetched. Try again later; if its version is gone, change see/packages.tsv.", detail
        ) from error


@dataclass(frozen=True)
class Photo:
    """An answer names what the photograph shows if it holds one of `words`."""

    file: Path
    words: tuple[str, ...]

    def named_in(self, text: str) -> bool:
        """Whether `text` names it."""
        return is_named(self.words, text)


Listed = list[tuple[Path, tuple[str, ...]]]  # the files of a list of pictures, and what stands behind them


def development_photos() -> Listed:
    """The photographs that the recipe is developed on: accepted words."""
    return [(find_unpacked(path) or UNPACKED / path, tuple(rest)) for path, *rest in table(FOLDER / "photos.tsv")]


def sealed(name: str) -> Listed:
    """A sealed list: "photos" has accepted words, "drawings" names, "questions" kinds, questions and answers."""
    listed = table(SEALED / f"see_{name}.tsv")
    return [(packages()[package].folder / path, tuple(rest)) for package, path, *rest in listed]


def photos(listed: Listed) -> list[Photo]:
    """The photographs of a list."""
    return [Photo(file, tuple(words.split(", "))) for file, (words,) in listed]


def missing_sealed() -> list[str]:
    """The sealed pictures that are not here."""
    return [str(file) for file, _ in [*sealed("photos"), *sealed("drawings")] if not file.is_file()]


def main(uses: Sequence[str]) -> int:
    """Fetches the packages for `uses`, all if empty. Returns the exit status: 1 if anything is missing."""
    if unknown := set(uses) - set(USES):
        print(f"There are no pictures for '{min(unknown)}'. Choose among: {', '.join(USES)}.", file=sys.stderr)
        return 2
    wanted = [package for package in packages().values() if not uses or package.use in uses]
    failed = 0
    for package in tqdm(wanted, "packages", disable=None):
        try:
            fetch(package)
        except AdapterError as error:
            failed += 1
            print(f"{package.name} {package.version} is missing. {error}", error.detail, file=sys.stderr)
    missing = missing_sealed() if not uses or "sealed" in uses else []
    if not uses or "development" in uses:
        missing += [str(file) for file, _ in development_photos() if not file.is_file()]
    print(
        f"{len(wanted) - failed} of {len(wanted)} packages are in {UNPACKED}; {len(missing)} pictures are missing."
    )
    for path in missing:
        print(f"  {path}")
    return int(bool(failed or missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
