"""The Inside panel: what gates and prompts did in an answer.

It must never know the conversation beyond the answer that it shows.
"""
