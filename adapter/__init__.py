"""Zero-init attention adapters for one frozen, quantised LLaMA: load, apply, store, serve."""

__version__ = "0.1.0"
