"""The trainer: recipes, data in many formats, the training loop, scores and cards; `ui` is the page's Train tab.

Uses adapter's method, base and serve. Outside of `ui` it must never know Gradio, the page or the server.
"""
