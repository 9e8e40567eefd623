"""The page's Train tab. tab.py and events.py know Gradio; the other modules know files, processes and HTML.

Trains nothing itself: it starts `python -m train` as a process and reads the folder of its run.
"""
