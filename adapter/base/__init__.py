"""The frozen LLaMA: which model a name means; fetched, converted, quantised and loaded; its chat template.

Must never know adapters on disk, requests or pages.
"""
