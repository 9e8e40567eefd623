"""English sentences that the server tells strangers and programs."""

from __future__ import annotations

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

# Bodies that are refused.
SEND_LESS = "Start a new conversation, or send less."
REQUEST_WITHOUT_LENGTH = "A request must say how long it is."
REQUEST_TOO_SLOW = "The request took too long to arrive. Send it again, or send less."
UPLOAD_NOT_KEPT = "The server could not keep this file: its disk may be full. Send words only, or try again later."
UPLOADS_FULL = "There is no room for more uploads at the moment. Try again later, or send words only."

# ZeroGPU.
GPU_CLOSED = "The server is going down. Ask again in a minute."
GPU_WORKER_ENDED = (
    "The GPU was taken away before the answer was complete. Ask again; with fewer max tokens it needs less time."
)
