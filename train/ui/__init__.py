"""The page's Train tab. tab.py and handlers.py know Gradio; the other modules know files, processes and HTML."""
