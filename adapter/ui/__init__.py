"""The page: Chat, Compare and Inside. Gradio is known here, in train/ui and in app.py only.

Nothing else imports this package.
"""
