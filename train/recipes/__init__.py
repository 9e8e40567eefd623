"""Recipes of the shipped adapters: a folder an adapter, with its settings (recipe.yaml), its data and its measures.

Makes examples and measures answers. Must never know the training loop, HTTP or Gradio.
"""
