"""The form of answers, as text: a grammar that every answer belongs to. Knows grammars; knows no tokenizer.

A form is a grammar in the Lark syntax of llguidance, in which `%json {...}` stands for a JSON schema. It may use
the terminal MESSAGE_WORDS, a run of whole words of the message that is answered, as a JSON string spells them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter.errors import BadInput, Busy

if TYPE_CHECKING:
    from llguidance import LLParserLimits

NO_FORM = ""  # in a request: answers are free, whatever form the adapter has
MAX_FORM_BYTES = 16 * 2**10  # of UTF-8; rules that refer to one another end the process where they are far deeper
MAX_DEPTH = 64  # of a JSON schema
_CHECK_SECONDS, _CHECK_BYTES = 1, 2**30  # of processor and of memory that a form may take to be checked
_CHECKS = threading.BoundedSemaphore(2)  # processes at once
_WAIT_SECONDS = 30.0
_MESSAGE = re.compile(r"\bMESSAGE_WORDS\b")
# Scripts that put no space between words: each of their characters is a word.
_UNSPACED = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|.", re.DOTALL)
_MOST_WORDS = 300  # and marks: llguidance gives up on runs of words of a message of a thousand
_ANY_TEXT = r'/([^"\\\x00-\x1f]|\\["\\\/bfnrt])+/'  # inside a JSON string
# Of the separators of `json.dumps`: where white space is free, a small model may write it for ever.
_SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_TOO_COMPLEX = "The form is too complex. Make it smaller: fewer choices, fewer levels, simpler patterns."


def json_schema_form(schema: Mapping[str, Any]) -> str:
    """The form of a JSON value of `schema`, in one line as `json.dumps` writes it. Raises BadInput.

    Nothing is fetched: a $ref may point into the schema itself only.
    """
    for depth, key, value in _entries(schema):
        if depth > MAX_DEPTH:
            raise BadInput(f"The JSON schema has more than {MAX_DEPTH} levels. Make it flatter.")
        if key == "$ref" and isinstance(value, str) and not value.startswith("#"):
            raise BadInput("A $ref may point into its own schema only, as in #/$defs/name: nothing is fetched.")
    return "start: %json " + json.dumps({**schema, "x-guidance": _SPACING}, ensure_ascii=False)


def _entries(schema: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Level, key and value of everything in a schema, without recursion."""
    open_values: list[tuple[int, Any]] = [(1, schema)]
    while open_values:
        depth, value = open_values.pop()
        entries = value.items() if isinstance(value, Mapping) else [("", v) for v in value]
        for key, entry in entries:
            yield depth, key, entry
            if isinstance(entry, (Mapping, list)):
                open_values.append((depth + 1, entry))


JSON_OBJECT = json_schema_form({"type": "object"})  # any


def with_message(form: str, message: str) -> str:
    """The form with MESSAGE_WORDS defined, if it uses that: one or more of the message's words.

    Of a message without words, or of more than 300, it is any text that JSON can hold. A form that has been
    through this stays as it is.
    """
    if not _MESSAGE.search(form) or re.search(r"^MESSAGE_WORDS\s*:", form, re.MULTILINE):
        return form
    text = message.encode("utf-8", "replace").decode()
    parts = _WORDS.findall(text)
    if not 0 < sum(not part.isspace() for part in parts) <= _MOST_WORDS:
        return f"{form}\nMESSAGE_WORDS: {_ANY_TEXT}"
    chunks = [json.dumps(part, ensure_ascii=False)[1:-1] for part in parts]
    words = json.dumps({"substring_chunks": chunks}, ensure_ascii=False)
    return f"{form}\nMESSAGE_WORDS: %regex {words} & /\\S((?s:.*)\\S)?/"


def limits() -> LLParserLimits:
    """How much work a form may be, at once and at each token."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=1000,
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=30_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


@lru_cache(256)
def check_form(form: str) -> None:
    """Raises BadInput, with the reason in its sentence, if a form cannot be used; Busy if many are being checked.

    A process of its own tries it: some small grammars take hours, gigabytes, or the whole stack.
    """
    try:
        size = len(form.encode())
    except UnicodeEncodeError:
        raise BadInput("The form holds half a character. Take it out.") from None
    if size > MAX_FORM_BYTES:
        raise BadInput(f"The form has {size} bytes; {MAX_FORM_BYTES} are the limit. Make it smaller.")
    if not _CHECKS.acquire(timeout=_WAIT_SECONDS):
        raise Busy("Many forms are being checked already. Try again in a minute.")
    try:
        checked = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(with_message(form, "Some words.")),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_WAIT_SECONDS,
            cwd=Path(__file__).parents[2],
        )
    except subprocess.TimeoutExpired:
        raise Busy("The form could not be checked in time. Try again in a minute.") from None
    finally:
        _CHECKS.release()
    if checked.returncode:
        raise BadInput(_TOO_COMPLEX, checked.stderr[-500:])
    if problem := json.loads(checked.stdout):
        raise BadInput(f"The form cannot be used: {problem}.")


def _problem(form: str) -> str:
    """What is wrong with a form, in llguidance's words; empty if it can be used with a vocabulary of bytes."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(form), limits=limits(), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
        if not matcher.is_error():
            return ""
        if "NoExtension" in matcher.get_error():
            return "no text has it"
    lines = matcher.get_error().splitlines()
    reason = re.sub(r"^at \d+\(\d+\): ", "", lines[0]).removeprefix("failed to compile JSON schema: ")
    if "regex parse error" in reason:
        reason = next((line for line in lines if line.startswith("error: ")), reason)
    return reason.rstrip(".: ")[:300]


def _limit_process() -> None:
    """Limit what this process may take, where the system can. Answers that are being written come first."""
    if sys.platform != "win32":
        import resource

        os.nice(10)
        resource.setrlimit(resource.RLIMIT_CPU, (_CHECK_SECONDS, _CHECK_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_CHECK_BYTES, _CHECK_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit_process()
    print(json.dumps(_problem(json.loads(sys.stdin.read()))))
