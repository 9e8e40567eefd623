"""Recipes of the shipped adapters: one module an adapter, its phrases and word lists as files in `data/`.

Makes examples and measures answers. Must never know the training loop, HTTP or Gradio.
"""
