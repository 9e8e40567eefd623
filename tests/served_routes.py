"""The routes of an application, from its routers."""

from __future__ import annotations

from typing import Any


def served_routes(application: Any) -> set[tuple[str, str]]:
    """(method, path) of all that a FastAPI application answers, that of its mounted ones and routers included."""
    found: set[tuple[str, str]] = set()

    def walk(rows: list[Any]) -> None:
        for row in rows:
            for inner in (getattr(row, "original_router", None), getattr(row, "app", None)):
                if hasattr(inner, "routes"):
                    walk(inner.routes)
            if hasattr(row, "path"):
                found.update((method, row.path) for method in getattr(row, "methods", None) or {"GET"})

    walk(application.routes)
    return found
