"""The Chat tab. It must never know the other tabs, but for the Inside panel, which it contains."""
