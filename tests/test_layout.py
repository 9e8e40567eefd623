"""The project's cut: what may import what, and which files there are no places for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each module of adapter/ may import only those before it.
ADAPTER_ORDER = [
    "errors",
    "config",
    "disk_cache",
    "hf_folder",
    "gguf_base",
    "embedded",
    "meta_tokenizer",
    "meta",
    "bases",
    "chat",
    "transcript",
    "deltas",
    "attention_gradients",
    "attention",
    "layers",
    "quantize",
    "memory",
    "llama",
    "vision",
    "projection",
    "tuning",
    "modules",
    "text",
    "inspect",
    "checkpoint",
    "formats",
    "hub",
    "store",
    "forward",
    "sampling",
    "request",
    "admission",
    "waiting",
    "batch",
    "prompts",
    "engine",
    "convert",
    "__main__",
]
# The trainer uses adapter/ below the store.
TRAIN_MAY_USE = set(ADAPTER_ORDER[: ADAPTER_ORDER.index("store")])
TRAIN_ORDER = [
    "config",
    "formats",
    "records",
    "history",
    "data",
    "check",
    "base",
    "pictures",
    "loop",
    "interrupt",
    "folder",
    "figures",
    "job",
    "score",
    "card",
    "recipe",
    "recipes",
    "files",
    "scenes",
    "reproduce",
    "__main__",
    "ui",
]
DRAWERS_FOR_ANYTHING = {"utils", "util", "helpers", "helper", "misc", "common", "tools", "shared"}
# A file has about 350 lines at most: one that outgrows this wants to be two. Training data may be long.
LONGEST = 375


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


TRAINER = [path for path in sources("train") if "recipes" not in path.parts]


def imports(path: Path) -> set[str]:
    """Every module that the file imports anywhere, dotted; names from a package count as its modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: imports here are absolute"
            found.update({node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names})
    return found


def modules_of(package: str, path: Path) -> set[str]:
    """The package's own modules that the file imports, by their name below the package."""
    dotted = {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}
    there = {path.stem for path in (ROOT / package).iterdir()}
    return dotted & there


def of_the_page(path: Path) -> bool:
    """train/ui is the page's third tab, and the page may know everything."""
    return "ui" in path.relative_to(ROOT).parts


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def core() -> list[Path]:
    """The modules of adapter/ and of its packages, but for the page's."""
    found = [path for path in (ROOT / "adapter").glob("*.py") if path.stem != "__init__"]
    return sorted([*found, *sources("adapter/formats")])


@pytest.mark.parametrize("path", core(), ids=shown)
def test_adapter_imports_only_upwards(path: Path) -> None:
    place = path.relative_to(ROOT / "adapter").parts[0].removesuffix(".py")
    assert place in ADAPTER_ORDER, f"give adapter/{place} its place in the order"
    allowed = set(ADAPTER_ORDER[: ADAPTER_ORDER.index(place)])
    if path.stem != place:
        allowed.add(place)  # the modules of one package share
    assert modules_of("adapter", path) <= allowed


@pytest.mark.parametrize("path", core(), ids=shown)
def test_adapter_knows_neither_page_nor_trainer(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"gradio", "gradio_client", "train", "app", "tests", "peft"}


@pytest.mark.parametrize("path", sources("train"), ids=shown)
def test_train_stays_below_the_store(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"app", "tests"}
    if not of_the_page(path):
        assert modules_of("adapter", path) <= TRAIN_MAY_USE
        assert "gradio" not in roots
    if "reproduce" not in path.parts:
        assert "peft" not in roots, "peers are only compared with"


@pytest.mark.parametrize("path", sources("train"), ids=shown)
def test_train_imports_only_upwards(path: Path) -> None:
    place = path.relative_to(ROOT / "train").parts[0].removesuffix(".py")
    if place == "__init__":
        return
    assert place in TRAIN_ORDER, f"give train/{place} its place in the order"
    allowed = set(TRAIN_ORDER[: TRAIN_ORDER.index(place)])
    allowed.add(place)  # the modules of one package share
    if place == "recipe":
        allowed.add("recipes")  # it looks a recipe up by name
    assert modules_of("train", path) <= allowed


def test_nothing_but_the_page_imports_the_page() -> None:
    for path in [*core(), *sources("train")]:
        if not of_the_page(path):
            pages = {name for name in imports(path) if re.match(r"(adapter|train)\.ui|app\b", name)}
            assert not pages, path


@pytest.mark.parametrize("path", [*sources("adapter", "train", "tests"), ROOT / "app.py"], ids=shown)
def test_every_file_says_what_it_is_and_has_a_subject(path: Path) -> None:
    assert path.stem not in DRAWERS_FOR_ANYTHING, "a function lives with what it is about"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), "a file opens with its boundary"


@pytest.mark.parametrize("path", [*sources("adapter/ui", "train/ui"), ROOT / "app.py"], ids=shown)
def test_the_pages_words_stand_in_texts_only(path: Path) -> None:
    """What a component or a toast is given in English comes from adapter/ui/texts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("gr."):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            words = [value.value for value in given if isinstance(value, ast.Constant)]
            assert not [word for word in words if isinstance(word, str) and re.match(r"[A-Z][a-z]", word)]


@pytest.mark.parametrize("path", [*core(), *sources("adapter/ui"), *TRAINER, ROOT / "app.py"], ids=shown)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_top_level_is_fixed() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    python = {path.name for path in ROOT.glob("*.py")}
    assert python == {"app.py"}
    ignored = {"runs", "__pycache__"}
    assert {name for name in folders - ignored if not name.endswith(".egg-info")} <= {
        "adapter",
        "train",
        "assets",
        "docs",
        "tests",
    }


def test_requirements_are_ranges() -> None:
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        requirement = line.partition(";")[0].strip()
        if requirement and not requirement.startswith("#"):
            assert re.fullmatch(r"[a-z0-9_-]+>=[0-9.]+", requirement), requirement
