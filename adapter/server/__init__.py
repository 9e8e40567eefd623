"""HTTP beside the page: OpenAI's API, limits by address, adapter upload, health and figures, where the page is
served, and loading the model in the background.

Imports neither Gradio nor training; `request_guard.py` knows Gradio's routes, `adapter_upload.py` a run's files.
"""
