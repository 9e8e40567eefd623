"""Imports what takes seconds, torch and transformers, while the page is there already: in one thread, others wait.

Their modules import each other in circles: of two threads that begin at once, Python lets one see half a module.
Whoever may be asked before the model is loaded calls this first.
"""

from __future__ import annotations

import importlib
import threading

_LOCK = threading.Lock()


def import_libraries() -> None:
    """Return when they are there. Raises ImportError."""
    with _LOCK:
        for name in ("adapter.serve.engine", "adapter.serve.store"):
            importlib.import_module(name)
