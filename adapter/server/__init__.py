"""HTTP beside the page: OpenAI's API, limits, who may do what, uploads, loading the model in the background.

Must never know Gradio's components or training.
"""
