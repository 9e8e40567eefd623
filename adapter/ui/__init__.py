"""The page: Chat, Compare and Inside, and the endpoints of gradio_client.

Gradio is known here, in train/ui and in app.py only, which are also the only ones to import this room. It must
never know how an answer is computed: it sends the engine a GenerationRequest and reads its events.
"""
