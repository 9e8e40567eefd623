"""Hypothesis strategies for JSON from strangers, and a watch on the files that reading it touches."""

import contextlib
import sys
import sysconfig
import threading
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from adapter.server import transcript

_EVENTS = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove")
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_touched: list[str] = []
_watched_threads: list[int] = []  # an audit hook cannot be removed again


def _record_file(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS or threading.get_ident() not in _watched_threads:
        return
    if not str(arguments[0]).startswith(_LIBRARIES):  # a late import, of a codec for example
        _touched.append(str(arguments[0]))


sys.addaudithook(_record_file)


@contextlib.contextmanager
def files_touched() -> Iterator[list[str]]:
    """The paths that this thread opens, lists or changes inside the block."""
    _touched.clear()
    _watched_threads.append(threading.get_ident())
    try:
        yield _touched
    finally:
        _watched_threads.pop()


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(
        ["/etc/passwd", "file:///etc/passwd", "../../../etc/passwd", "data:image/png;base64,AAAA", "user", "page"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["role", "text", "picture", "about", "record", "path", "messages", "values", "settings"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
_MESSAGE = st.builds(
    lambda role, rest: {**rest, "role": role},
    st.sampled_from(["user", "assistant", "page", "system"]),
    st.dictionaries(st.sampled_from(["text", "picture", "about", "record", "path"]), ANY_JSON, max_size=4),
)
ALMOST_TRANSCRIPT = st.builds(
    lambda version, messages, settings: {
        "format": transcript.FORMAT,
        "version": version,
        "messages": messages,
        "settings": settings,
    },
    st.sampled_from([2, 2, 2, 1, True, "2"]),
    st.lists(_MESSAGE, max_size=4) | ANY_JSON,
    ANY_JSON,
)
