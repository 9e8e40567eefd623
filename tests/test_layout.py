"""The house: which room may import which, that no imports run in a circle, and what a file opens with."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room may import itself and the rooms before it.
ADAPTER_ROOMS = ["errors", "files", "method", "base", "serve", "formats", "server", "ui", "__main__"]
# "" is the own files of the trainer. The Train tab starts `python -m train` as a process.
TRAIN_ROOMS = ["formats", "", "recipes", "reproduce", "__main__", "ui"]
KNOW_GRADIO = ("adapter/ui/", "train/ui/", "app.py")
SAY_NOTHING = {"utils", "util", "helpers", "helper", "misc", "common", "tools", "shared"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


PRODUCT = [*sources("adapter", "train"), ROOT / "app.py"]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, at_start: bool = False) -> set[str]:
    """Every module that a file imports, dotted. at_start: only what is imported when the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree)
    if at_start:
        nodes = iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: imports here are absolute"
            found.update({node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names})
    return found


def room_of(name: str) -> tuple[str, str]:
    """The package and the room of a dotted module."""
    package, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    if package == "train" and first not in TRAIN_ROOMS:
        first = ""
    return package, first


@pytest.mark.parametrize("path", sources("adapter"), ids=shown)
def test_rooms_of_adapter_import_downwards(path: Path) -> None:
    if path == ROOT / "adapter" / "__init__.py":
        return
    _, room = room_of(module(path))
    assert room in ADAPTER_ROOMS, f"adapter/{room} is no room of the house"
    above = set(ADAPTER_ROOMS[ADAPTER_ROOMS.index(room) + 1 :])
    for name in imports(path):
        package, other = room_of(name)
        assert package not in ("train", "app", "tests"), f"adapter/ imports {name}"
        assert package != "adapter" or other not in above, f"{room} imports {name}, which is above it"


@pytest.mark.parametrize("path", sources("train"), ids=shown)
def test_rooms_of_train_import_downwards(path: Path) -> None:
    _, room = room_of(module(path))
    above = set(TRAIN_ROOMS[TRAIN_ROOMS.index(room) + 1 :])
    for name in imports(path):
        package, other = room_of(name)
        assert package not in ("app", "tests")
        if package == "adapter" and room != "ui":
            assert other in ("", "errors", "files", "method", "base", "serve"), f"the trainer imports {name}"
        if package == "train" and other:
            assert other not in above, f"train/{room} imports {name}, which is above it"
        assert package != "peft" or room == "reproduce", "peers are only compared with"


def test_no_imports_run_in_a_circle() -> None:
    modules = {module(path): path for path in PRODUCT}
    graph = {
        name: {i for i in imports(path, at_start=True) if i in modules} - {name} for name, path in modules.items()
    }
    # `from package import module` names the package too, whose __init__ is only three lines.
    for name, needed in graph.items():
        needed -= {package for package in needed if any(other.startswith(f"{package}.") for other in needed)}
        needed -= {package for package in needed if name.startswith(f"{package}.")}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


@pytest.mark.parametrize("path", PRODUCT, ids=shown)
def test_gradio_is_known_to_the_page_only(path: Path) -> None:
    if not shown(path).startswith(KNOW_GRADIO):
        assert not {name.partition(".")[0] for name in imports(path)} & {"gradio", "gradio_client"}


@pytest.mark.parametrize("path", [*PRODUCT, *sources("tests")], ids=shown)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert path.stem not in SAY_NOTHING, "a function lives with what it is about"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), "a file opens with its boundary"


@pytest.mark.parametrize("path", [p for p in PRODUCT if shown(p).startswith(KNOW_GRADIO)], ids=shown)
def test_the_pages_words_stand_in_texts_only(path: Path) -> None:
    """What a component or a toast is given in English comes from the page's texts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("gr."):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            words = [value.value for value in given if isinstance(value, ast.Constant)]
            assert not [word for word in words if isinstance(word, str) and re.match(r"[A-Z][a-z]", word)]


@pytest.mark.parametrize("path", PRODUCT, ids=shown)
def test_state_travels_as_arguments(path: Path) -> None:
    """Who asks, above all: never through a context variable."""
    assert "contextvars.ContextVar" not in imports(path)


def test_top_level_is_fixed() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    ignored = {"runs", "__pycache__"}
    assert {path.name for path in ROOT.glob("*.py")} == {"app.py"}
    assert {name for name in folders - ignored if not name.endswith(".egg-info")} <= {
        "adapter",
        "train",
        "assets",
        "docs",
        "tests",
    }


def test_an_installed_package_is_whole() -> None:
    """Every package and every data file is named in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(settings["packages"]) == {
        module(path) for folder in ("adapter", "train") for path in (ROOT / folder).rglob("__init__.py")
    }
    packaged = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for folder in ("adapter", "train") for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} <= packaged


def test_requirements_are_ranges() -> None:
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        requirement = line.partition(";")[0].strip()
        if requirement and not requirement.startswith("#"):
            assert re.fullmatch(r"[a-z0-9_-]+>=[0-9.]+(,<[0-9.]+)?", requirement), requirement
