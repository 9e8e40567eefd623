"""The house: which room may import which, that imports make no circle, and what a file opens with."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from tests.app_process import ROOT

# A room may import itself and the rooms before it.
ADAPTER_ROOMS = ["", "errors", "files", "lru"]
ADAPTER_ROOMS += ["method", "base", "serve", "cluster", "formats", "server", "ui", "__main__"]
# "" is the trainer's own files. The Train tab starts `python -m train` as a process.
TRAIN_ROOMS = ["formats", "config", "input", "", "evaluate", "recipes", "reproduce", "card", "__main__", "ui"]
# What the trainer, its tab aside, may use of adapter/.
USED_BY_TRAINER = {"", "errors", "files", "lru", "method", "base", "serve"}
KNOW_GRADIO = ("adapter.ui", "train.ui", "app")
MOST_FILES = 16  # of a folder, its __init__ counted
SAY_NOTHING = {"utils", "util", "helpers", "helper", "misc", "common", "tools", "shared"}

Modules = Mapping[str, ast.Module]


def read(*patterns: str) -> dict[str, ast.Module]:
    """Syntax trees by dotted name."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {name: ast.parse(path.read_text("utf-8")) for name, path in zip(names, paths, strict=True)}


PRODUCT = read("adapter/**/*.py", "train/**/*.py", "app.py")
TESTS = read("tests/**/*.py")


def imports(tree: ast.Module) -> set[str]:
    """The dotted names that a module imports, also those that only its functions or its types need."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


def room_of(name: str) -> tuple[str, str]:
    """The package and the room of a dotted name."""
    package, *rest = name.removesuffix(".__init__").split(".")
    room = rest[0] if rest else ""
    if package == "train" and room not in TRAIN_ROOMS:
        room = ""
    return package, room


def arrows_upwards(modules: Modules) -> list[str]:
    found = []
    for name, tree in modules.items():
        package, room = room_of(name)
        for imported in imports(tree):
            other_package, other = room_of(imported)
            rooms = {"adapter": ADAPTER_ROOMS, "train": TRAIN_ROOMS}.get(package)
            if package == other_package and rooms is not None:
                # `from adapter import __version__` names no room.
                wrong = room not in rooms or (other in rooms and rooms.index(other) > rooms.index(room))
            elif package == "adapter":
                wrong = room not in ADAPTER_ROOMS or other_package in ("train", "app", "tests", "peft", "")
            elif package == "train":
                wrong = other_package in ("app", "tests", "") or (other_package == "peft" and room != "reproduce")
                wrong |= other_package == "adapter" and room != "ui" and other not in USED_BY_TRAINER
            else:
                wrong = other_package in ("tests", "")
            if wrong:
                found.append(f"{name} imports {imported}")
    return found


def circles(modules: Modules) -> list[str]:
    known = {name.removesuffix(".__init__"): imports(tree) for name, tree in modules.items()}
    graph = {name: {other for other in names if other in known} - {name} for name, names in known.items()}
    for name, needed in graph.items():
        # `from package import module` names the package too: an arrow to its __init__ only if that has contents.
        needed -= {package for package in needed if any(other.startswith(f"{package}.") for other in needed)}
        needed -= {package for package in needed if name.startswith(f"{package}.")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def gradio_outside_of_the_page(modules: Modules) -> list[str]:
    return [
        f"{name} imports {imported}"
        for name, tree in modules.items()
        if not f"{name}.".startswith(tuple(f"{page}." for page in KNOW_GRADIO))
        for imported in imports(tree)
        if imported.partition(".")[0] in ("gradio", "gradio_client")
    ]


def files_that_say_nothing(modules: Modules) -> list[str]:
    return [
        name
        for name, tree in modules.items()
        if name.rpartition(".")[2] in SAY_NOTHING or (tree.body and not ast.get_docstring(tree))
    ]


def toasts_elsewhere(modules: Modules) -> list[str]:
    """Calls that show a toast, whose text Gradio renders as HTML, beside the module that escapes it."""
    makers = {"Info", "Success", "Warning", "Error"}
    return [
        f"{name}: {ast.unparse(node)}"
        for name, tree in modules.items()
        if name != "adapter.ui.toasts"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and ast.unparse(node.func) in {f"gr.{maker}" for maker in makers})
        or (isinstance(node, ast.ImportFrom) and node.module == "gradio" and makers & {a.name for a in node.names})
    ]


def ambient_state(modules: Modules) -> list[str]:
    """Context variables: who asks is an argument of the request."""
    return [name for name, tree in modules.items() if re.search(r"\bContextVar\(", ast.unparse(tree))]


def crowded_folders(modules: Modules) -> list[str]:
    folders = Counter(name.rpartition(".")[0] for name in modules)
    return [f"{folder}: {count} files" for folder, count in folders.items() if count > MOST_FILES]


RULES = [
    arrows_upwards,
    circles,
    crowded_folders,
    gradio_outside_of_the_page,
    files_that_say_nothing,
    toasts_elsewhere,
    ambient_state,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_product_keeps(rule: Callable[[Modules], list[str]]) -> None:
    assert rule(PRODUCT) == []


def test_tests_say_what_they_are_in_folders_that_one_can_look_over() -> None:
    assert files_that_say_nothing(TESTS) == [] and crowded_folders(TESTS) == []


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (arrows_upwards, "adapter.serve.new", "def late():\n    import adapter.server.limits"),
        (arrows_upwards, "train.new", "from adapter.server import limits"),
        (circles, "adapter.errors", "if TYPE_CHECKING:\n    from adapter.files import replace_file"),
        (gradio_outside_of_the_page, "adapter.server.new", "def late():\n    from gradio import blocks"),
        (files_that_say_nothing, "adapter.serve.helpers", '"""Helps."""'),
        (ambient_state, "adapter.server.new", "import contextvars\nWHO = contextvars.ContextVar('who')"),
        (toasts_elsewhere, "train.ui.new", "def tell(name):\n    gr.Info(name)"),
    ],
)
def test_each_rule_finds_what_breaks_it(rule: Callable[[Modules], list[str]], name: str, source: str) -> None:
    # Beside the new module one that imports adapter.errors: with it the circle is closed.
    innocent = {"adapter.files": ast.parse('"""Files."""\nimport adapter.errors')}
    assert rule(innocent) == [] and rule({**innocent, name: ast.parse(source)}) != []


def test_an_installed_package_is_whole() -> None:
    """Every data file is named in pyproject.toml; its packages are those with an `__init__.py`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert all(f"{name.rpartition('.')[0]}.__init__" in PRODUCT for name in PRODUCT if "." in name)
    packaged = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for folder in ("adapter", "train") for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert {path for path in files if "__pycache__" not in path.parts and path.suffix != ".py"} <= packaged


def test_the_page_is_imported_without_what_takes_seconds() -> None:
    """The page is served while they are imported."""
    heavy = "{'torch', 'transformers', 'numba', 'timm'} & set(sys.modules)"
    code = f"import sys, app; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
