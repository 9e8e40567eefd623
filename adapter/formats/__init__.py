"""Adapters of other programs, in and out: official V1 and V2, PEFT, and the Hugging Face Hub.

Must never know requests, pages or training.
"""
