"""What an engine tells of itself to whoever runs the server.

Imports no models, so that the page's server and replicas on other machines may use it before them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatistics:
    """One engine at one moment: what it has done since it was made, and what it holds. Can be pickled.

    prefill_steps read a chunk of one row's prompt, decode_steps the next tokens of all rows in the batch; each
    with the seconds that all of them took, sampling and sending included. decode_rows: rows of all decode steps;
    divided by these it is the mean batch size. running, waiting: rows that have started, and that have not.
    cache_tokens: of cache_capacity, those that are reserved for running rows (prompt and longest answer).
    """

    prefill_steps: int = 0
    prefill_seconds: float = 0.0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    decode_rows: int = 0
    running: int = 0
    waiting: int = 0
    cache_tokens: int = 0
    cache_capacity: int = 0
