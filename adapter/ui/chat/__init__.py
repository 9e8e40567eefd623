"""The Chat tab: conversations, answers and what is done with them.

It must never know the other tabs, but for the Inside panel, which it contains.
"""
