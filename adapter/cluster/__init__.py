"""The engine as replicas on Ray: a page sends requests to engines in other processes, on one machine or several.

The one room that knows Ray. It must never know HTTP, Gradio or training.
"""
