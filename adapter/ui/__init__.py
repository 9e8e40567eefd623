"""The page and the endpoints of gradio_client. Only this room, train/ui and app.py import Gradio, and only those
two import this room. It must never know how an answer is computed: it sends a GenerationRequest and reads events.
"""
