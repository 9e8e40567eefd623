"""The page's parts. Gradio is known here and in app.py only; nothing else imports this package."""
