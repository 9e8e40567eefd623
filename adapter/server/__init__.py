"""HTTP beside the page: OpenAI's API, limits by address, adapter upload, health and figures, where the page is
served, and loading the model in the background.

Must never know Gradio, the page's components or training.
"""
