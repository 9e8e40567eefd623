"""Recipes of the shipped adapters: a folder an adapter, with its settings (recipe.yaml), its data and its measures.

Makes examples and measures answers. Must never know the training loop, HTTP or Gradio.
"""

from pathlib import Path


def recipe_names() -> list[str]:
    """Names of all recipes: the folders of `train/recipes/` with a `recipe.py`."""
    return sorted(file.parent.name for file in Path(__file__).parent.glob("*/recipe.py"))
