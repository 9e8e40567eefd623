"""Lets a browser ask at once for what the first view needs of Gradio's frontend (6.31), which loads part after
part: a hundred files, six at a time. What is not found here is loaded as Gradio does it.
"""

import json
import re
from functools import cache
from pathlib import Path

import gradio as gr

_ASSETS = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
# Kinds of components: those of the message box, then what else is seen first, then the others.
_FIRST = [
    *("html", "row", "column", "form", "tabs", "tabitem", "multimodaltextbox", "radio", "slider", "chatbot"),
    *("accordion", "checkbox", "button", "textbox", "state", "timer", "browserstate"),
]
_LATER = ["dropdown", "markdown", "file", "downloadbutton"]


def preload_links() -> str:
    """The files in the order in which they are needed, as the HTTP header `Link` of the page."""
    names = [*_core_files(), *[name for name in _files(_FIRST) if name.endswith(".js")]]
    style = "preload; as=style; crossorigin"  # modules have it by themselves; nginx has room for 4 kB
    return ", ".join(f"<assets/{n}>; rel={'modulepreload' if n.endswith('.js') else style}" for n in names)


def styles_html() -> str:
    """All components' styles, for the page's head. Gradio asks for none that has a link, even a disabled one."""
    core = _core_files()
    names = [name for name in _files(_FIRST + _LATER) if name.endswith(".css") and name not in core]
    text = "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in names)
    text = text.replace("url(./", "url(assets/")
    links = "".join(f'<link rel="stylesheet" disabled href="assets/{name}">' for name in names)
    return f"{links}<style>{text}</style>"


@cache
def _core_files() -> dict[str, None]:
    """Returns the files without which Gradio shows no component."""
    files: dict[str, None] = {}
    for source in _ASSETS.glob("index-*.js"):
        files |= _needs(source, r"\./Index-[\w-]+\.js")
    for name in [name for name in files if re.fullmatch(r"Index-.*\.js", name)]:
        files |= _needs(_ASSETS / name, r"\./Blocks-[\w-]+\.js")
    return files


def _files(kinds: list[str]) -> dict[str, None]:
    files: dict[str, None] = {}
    for core in _ASSETS.glob("core-*.js"):
        for kind in kinds:
            files |= _needs(core, r"\./[\w-]+\.js", rf"[{{,]{kind}:{{(?:(?!}}).)*?component:")
    return files


def _needs(source: Path, file: str, before: str = "") -> dict[str, None]:
    """The names of the files that `source` asks for when it first imports `file`, a pattern."""
    text = source.read_text(encoding="utf-8")
    names = re.search(r"m\.f=(\[.*?\])", text)
    found = re.search(rf"{before}[^`]*?import\(`{file}`\)[^`]*?__vite__mapDeps\(\[([\d,]+)\]", text)
    if names is None or found is None:
        return {}
    listed = json.loads(names[1])
    return dict.fromkeys(listed[int(i)].removeprefix("./") for i in found[1].split(","))
