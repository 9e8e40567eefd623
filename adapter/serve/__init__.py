"""Many requests on one base: requests, scheduling, batches, KV caches, sampling, the adapter store, inspection.

Must never know HTTP, Gradio or training.
"""
