"""English sentences that the server tells strangers and programs."""

from __future__ import annotations

import math

FAILED = "Something went wrong on the server; its log has the details. Try again."
DEFAULT_QUESTION = "What is in this picture?"  # of a picture that comes without a word

# Requests that are refused.
NOT_UNDERSTOOD = "This request is none that is known at this address."
NOTHING_HERE = "There is nothing at this address."
FOR_THIS_MACHINE_ONLY = (
    "This page was started for its own machine only, and this request comes from elsewhere or through a proxy. "
    "Whoever runs it can let others in by starting it with --public."
)
METRICS_NOT_FOR_ALL = "The figures of this server are for its own machine, or for who shows the key of /v1."
OF_ANOTHER_PAGE = "A web page of another address sent this request. Open this page itself, in a tab of its own."

# Limits, and bodies that are refused.
REQUEST_WITHOUT_LENGTH = "A request must say how long it is."
REQUEST_TOO_SLOW = "The request took too long to arrive. Send it again, or send less."
UPLOAD_NOT_KEPT = "The server could not keep this file: its disk may be full. Send words only, or try again later."
UPLOADS_FULL = "There is no room for more uploads at the moment. Try again later, or send words only."

# ZeroGPU.
GPU_CLOSED = "The server is going down. Ask again in a minute."
GPU_WORKER_ENDED = (
    "The GPU was taken away before the answer was complete. Ask again; with fewer max tokens it needs less time."
)


def too_often(count: int, what: str, seconds: float) -> str:
    """what: the counted thing and its period, such as "uploads an hour"."""
    if seconds < 90:
        whole = max(1, math.ceil(seconds))
        again = f"{whole} second{'' if whole == 1 else 's'}"
    else:
        again = f"{math.ceil(seconds / 60)} minutes"
    return f"{count} {what} are the limit for one address. Try again in {again}."


def too_many_answers_at_once(count: int) -> str:
    return f"{count} answers are being written for your address already. Wait for one of them to end."


def too_many_inspections_at_once(count: int) -> str:
    return f"{count} answers are being looked into for your address already. Wait for one of them to end."


def too_many_events(count: int) -> str:
    return f"{count} actions of your address are under way already. Wait for some of them to end."


def too_many_connections(count: int) -> str:
    return f"{count} connections are open from your address already. Close some of its pages."


def upload_too_large(limit: int) -> str:
    return f"The upload is larger than {limit // 2**20} MB. Make it smaller, or send one file at a time."


def request_too_large(limit: int) -> str:
    return f"The request is larger than {limit // 2**20} MB. Start a new conversation, or send less."


def too_many_values(limit: int) -> str:
    return f"The request has more than {limit:,} values. Start a new conversation, or send less."


def message_too_long(characters: int, most: int) -> str:
    return f"This message has {characters:,} characters; at most {most:,} fit. Shorten it, or send it in parts."


def not_loaded(status: str) -> str:
    return f"The model is not loaded. {status}"


def no_gpu(reason: str) -> str:
    return f"There is no GPU for this answer now. {reason}"
