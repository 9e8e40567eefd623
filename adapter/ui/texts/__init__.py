"""The English texts of the page but for the Train tab's: YAML files, and functions that choose words."""

from pathlib import Path
from typing import Any

import yaml


def read(module: str) -> dict[str, Any]:
    """The texts of the YAML file beside a module, and a function for each that is filled in with values."""
    found = yaml.safe_load(Path(module).with_suffix(".yaml").read_text(encoding="utf-8"))
    filled = found.pop("filled")
    return {**found, **{name: text.format for name, text in filled.items()}}
