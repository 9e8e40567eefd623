"""app.py with faults on demand: `python -m tests.faulty_app [arguments of app.py]`.

In the folder $FAULTS the file `step_seconds`, which a test may change, says how long a decode step takes at least,
and the file `counts` says how many requests are open and in the batch. $SESSIONS is how many sessions of visitors
Gradio keeps. With $POISON the KV cache begins full of NaN: what is read before it is written is noticed, and the
cache takes all of its memory at once.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import app
from adapter.serve.engine import Engine
from adapter.serve.kv_cache import KVCache

COUNT_EVERY_SECONDS = 0.05


def write_counts(file: Path) -> None:
    while True:
        thread = next((thread for thread in threading.enumerate() if thread.name == "engine"), None)
        if thread is not None:
            engine = thread._target.__self__  # type: ignore[attr-defined]
            new = file.with_name("counts.new")
            new.write_text(json.dumps([len(engine._open), len(engine._scheduler.decoding)]))
            os.replace(new, file)  # readers never see half of it
        time.sleep(COUNT_EVERY_SECONDS)


def slow_down(file: Path) -> None:
    step = Engine._decode

    def slow_step(self: Engine, *arguments: Any) -> Any:
        time.sleep(float(file.read_text() or 0))  # it is empty while it is written
        return step(self, *arguments)

    Engine._decode = slow_step  # type: ignore[method-assign, assignment]


def poison_cache() -> None:
    make = KVCache.__init__

    def make_poisoned(self: KVCache, *arguments: Any) -> None:
        make(self, *arguments)
        self.data.fill_(float("nan"))

    KVCache.__init__ = make_poisoned  # type: ignore[method-assign, assignment]


def main() -> int:
    folder = Path(os.environ["FAULTS"])
    slow_down(folder / "step_seconds")
    if os.environ.get("POISON"):
        poison_cache()
    app.SESSIONS = int(os.environ.get("SESSIONS", app.SESSIONS))
    threading.Thread(target=write_counts, args=[folder / "counts"], daemon=True).start()
    return app.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
