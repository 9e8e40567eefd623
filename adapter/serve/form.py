"""Forms: grammars that answers belong to, in the Lark syntax of llguidance, with `%json {...}` for JSON schemas.

The terminal MESSAGE_WORDS is a run of whole words of the message that is answered, as a JSON string spells them.
Run as a program, this file checks a form from stdin; it does not import torch or numpy: they reserve memory.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from adapter.errors import BadForm, BadInput, Busy, first_line
from adapter.lru import LRU
from adapter.method.config import MAX_FORM_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adapter.base.llama import Base

    # Of the next token: the only one that is allowed, or a bit for each, [vocab_size / 32].
    Allowed = int | NDArray[np.uint32]

NO_FORM = ""  # in a request: answers are free, whatever form the adapter has
MAX_DEPTH = 64  # of a JSON schema
# What stands after some of its keys instead of a schema: values, or schemas by names.
_KINDS = dict.fromkeys(("const", "enum", "default", "examples"), "data")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const")
_KINDS |= dict.fromkeys(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"), "names")
_NOTES = ("password", "binary", "path", "file-path", "directory-path")  # formats of any text
_CHECK_SECONDS, _CHECK_BYTES = 1, 2**30  # of processor and of memory that a form may take to be checked
_CHECKS = threading.BoundedSemaphore(2)  # processes at once
_WAIT_SECONDS = 30.0
_NICE = ("nice", "-n", "10") if shutil.which("nice") else ()  # answers that are being written come first
_LIMITS = LLParserLimits(  # of the work that a form may be, at once and at each token
    max_items_in_row=1000,
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=10_000,
    max_lexer_states=30_000,
    max_grammar_size=50_000,
    verbose_errors=False,
)
_vocabularies: LRU[Any, _Vocabulary] = LRU(2)  # by tokenizer
# What is wrong with the forms that were checked last, as a sentence and its detail; "" where nothing is.
_checked: LRU[str, tuple[str, str]] = LRU(256)
_MESSAGE = re.compile(r"\bMESSAGE_WORDS\b")
_LITERALS = re.compile(r'"(?:\\[\s\S]|[^"\\])*"|/(?:\\[\s\S]|[^/\\])+/|(?://|#).*')  # of a grammar, and comments
# Scripts that put no space between words: each of their characters is a word.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORDS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]{{1,64}}|.", re.DOTALL)  # llguidance takes 110 in one
_MOST_WORDS = 300  # and marks: llguidance gives up on runs of words of a message of a thousand
_ANY_TEXT = r'/([^"\\\x00-\x1f]|\\["\\\/bfnrt])+/'  # inside a JSON string
# Of the separators of `json.dumps`: where white space is free, a small model may write it for ever.
_SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_TOO_COMPLEX = "The form is too complex. Make it smaller: fewer choices, fewer levels, simpler patterns."


def json_schema_form(schema: Mapping[str, Any]) -> str:
    """The form of a JSON value of `schema`, in one line as `json.dumps` writes it. Raises BadInput."""
    unchecked: list[tuple[int, Any, str]] = [(1, schema, "schema")]  # without recursion
    while unchecked:
        depth, value, kind = unchecked.pop()
        if depth > MAX_DEPTH:
            raise BadInput(f"The JSON schema has more than {MAX_DEPTH} levels. Make it flatter.")
        if kind == "schema" and isinstance(value, dict):
            _check_keywords(value)
        for key, entry in value.items() if isinstance(value, Mapping) else [("", entry) for entry in value]:
            if isinstance(entry, (Mapping, list)):
                inner = _KINDS.get(key, "schema") if kind == "schema" else "schema"
                unchecked.append((depth + 1, entry, "data" if kind == "data" else inner))
    return "start: %json " + json.dumps({**schema, "x-guidance": _SPACING}, ensure_ascii=False)


def _check_keywords(schema: dict[str, Any]) -> None:
    """Takes out of it what constrains nothing. Raises BadInput for what llguidance would pass over or not keep."""
    if schema.get("propertyNames") == {"type": "string"}:
        del schema["propertyNames"]
    if schema.get("format") in _NOTES:
        del schema["format"]
    target, least, choices = schema.get("$ref"), schema.get("minProperties"), schema.get("enum")
    if isinstance(target, str) and not target.startswith("#"):
        raise BadInput("A $ref may point into its own schema only, as in #/$defs/name: nothing is fetched.")
    required = schema.get("required")
    if isinstance(least, int) and least > len(required if isinstance(required, list) else ()):
        raise BadInput("minProperties above the number of required names could be met by one name twice.")
    for number in [*map(schema.get, _NUMBERS), *(choices if isinstance(choices, list) else ())]:
        rounded = isinstance(number, float) and float(f"{number:.15g}") != number
        if rounded or (isinstance(number, int) and abs(number) >= 2**53):
            raise BadInput("A number of the JSON schema has more than 15 digits, which are not kept exactly.")


JSON_OBJECT = json_schema_form({"type": "object"})  # any


def with_message(form: str, message: str) -> str:
    """The form with MESSAGE_WORDS defined, if it needs that: any text, if the message has no words or too many."""
    if not _MESSAGE.search(form) or re.search(r"^MESSAGE_WORDS\s*:", form, re.MULTILINE):
        return form
    parts = _WORDS.findall(message.encode("utf-8", "replace").decode())
    if not 0 < sum(not part.isspace() for part in parts) <= _MOST_WORDS:
        return f"{form}\nMESSAGE_WORDS: {_ANY_TEXT}"
    chunks = [json.dumps(part, ensure_ascii=False)[1:-1] for part in parts]
    words = json.dumps({"substring_chunks": chunks}, ensure_ascii=False)
    return f"{form}\nMESSAGE_WORDS: %regex {words} & /\\S((?s:.*)\\S)?/"


def check_form(form: str) -> None:
    """Raises BadForm, with the reason in its sentence, or Busy if many are being checked. A process of its own
    tries the form, once: some small grammars take hours, gigabytes, or the whole stack.
    """
    try:
        size = len(form.encode())
    except UnicodeEncodeError:
        raise BadForm("The form holds half a character. Take it out.") from None
    if size > MAX_FORM_BYTES:
        raise BadForm(f"The form has {size} bytes; {MAX_FORM_BYTES} are the limit. Make it smaller.")
    sentence, detail = _checked.compute(form, lambda: _check_in_process(form))
    if sentence:
        raise BadForm(sentence, detail)


def _check_in_process(form: str) -> tuple[str, str]:
    """What is wrong with a form, as in `_checked`. Raises Busy."""
    if not _CHECKS.acquire(timeout=_WAIT_SECONDS):
        raise Busy("Many forms are being checked already. Try again in a minute.")
    try:
        done = subprocess.run(
            [*_NICE, sys.executable, "-m", __name__],
            input=json.dumps(with_message(form, "Some words.")),
            capture_output=True,
            encoding="utf-8",
            timeout=_WAIT_SECONDS,
            cwd=Path(__file__).parents[2],
        )
    except (OSError, subprocess.TimeoutExpired):
        raise Busy("The form could not be checked in time. Try again in a minute.") from None
    finally:
        _CHECKS.release()
    if done.returncode:
        return _TOO_COMPLEX, done.stderr[-500:]
    problem = json.loads(done.stdout)
    return (f"The form cannot be used: {problem}." if problem else ""), ""


def start_form(base: Base, form: str, message: str) -> FormState:
    """The beginning of an answer to `message` that has the form. Raises BadInput for one that cannot be used."""
    vocabulary = _vocabularies.compute(base.tokenizer, lambda: _Vocabulary(base))
    return FormState(vocabulary.matcher(form, message), base.fingerprint.vocab_size)


class _Vocabulary:
    """A base's tokens as llguidance reads them, and the forms that were compiled for them. Thread-safe."""

    def __init__(self, base: Base) -> None:
        backend = base.tokenizer.backend_tokenizer
        size = base.fingerprint.vocab_size
        try:
            self._tokenizer = LLTokenizer(backend.to_str(), n_vocab=size, eos_token=sorted(base.stop_ids))
        except ValueError as error:
            name = base.fingerprint.name
            raise BadInput(
                f"The tokenizer of {name} cannot hold answers to a form. Ask without one.", first_line(error)
            ) from error
        # SentencePiece begins a text with a space that its decoder takes away again.
        first = backend.encode("{", add_special_tokens=False).ids
        self._begins_with_space = self._tokenizer.decode_bytes(first).startswith(b" ")
        self._compiled: LRU[str, LLMatcher] = LRU(16)

    def matcher(self, form: str, message: str) -> LLMatcher:
        """Returns the matcher at the start of an answer. Raises BadInput for a form that cannot be used."""
        grammar = with_message(form, message)
        if grammar != form:  # it is that of one message
            return self._compile(grammar)
        return self._compiled.compute(grammar, lambda: self._compile(grammar)).deep_copy()

    def _compile(self, grammar: str) -> LLMatcher:
        grammars: list[dict[str, str]] = [{"name": "form", "lark_grammar": grammar}]
        if self._begins_with_space:
            grammars.insert(0, {"lark_grammar": 'start: " "? @form'})
        matcher = LLMatcher(self._tokenizer, json.dumps({"grammars": grammars}), limits=_LIMITS, log_level=0)
        if matcher.is_error():
            raise BadInput(
                "The form is too complex for this base and message. Use a simpler form or a shorter message.",
                matcher.get_error()[:500],
            )
        return matcher


class FormState:
    """How far one answer has come in its form. For one thread at a time."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        import numpy as np

        self._matcher = matcher
        self._bits = np.zeros((vocab_size + 31) // 32, np.uint32)
        self._forced: deque[int] = deque()  # next tokens that are not chosen, which the matcher has read already
        self._force()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow what has been accepted."""
        return not self._forced and self._matcher.is_stopped()

    def allowed(self) -> Allowed:
        """The tokens that may come next; valid until the next call. Raises BadInput if that cannot be told."""
        if self._forced:
            return self._forced[0]
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return self._bits

    def accept(self, token: int) -> None:
        """Go on after a token. Raises BadInput if it is not allowed, or if the form cannot go on."""
        if self._forced and self._forced[0] == token:
            self._forced.popleft()
        else:
            if self._forced:  # the forced text may have been written with other tokens
                self._matcher.rollback(len(self._forced))
                self._forced.clear()
            if not self._matcher.validate_tokens([token]):
                raise BadInput("The answer has left its form, so it cannot go on. Ask again, or without the form.")
            self._matcher.consume_token(token)
            self._check()
        if not self._forced:
            self._force()

    def draft(self, guesses: Sequence[int], limit: int) -> list[int]:
        """A draft of at most `limit` next tokens: those that are forced, or as many guesses as are allowed."""
        if self._forced:
            return list(self._forced)[:limit]
        return list(guesses[: self._matcher.validate_tokens(list(guesses))]) if guesses else []

    def _force(self) -> None:
        """Take over the tokens that the form forces: all at once, since each call tokenises all forced text."""
        if forced := self._matcher.compute_ff_tokens():
            self._matcher.consume_tokens(forced)
            self._check()
            self._forced.extend(forced)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadInput(
                "The form became too complex in the middle of this answer. Use a simpler one, or none.",
                self._matcher.get_error()[:500],
            )


def _problem(form: str) -> str:
    """What is wrong with a form, in llguidance's words; empty if it can be used with a vocabulary of bytes."""
    if "<" in _LITERALS.sub("", form):  # the vocabulary of bytes has other tokens than a base
        return "a grammar is of texts and names no tokens"
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(form), limits=_LIMITS, log_level=0)
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


if __name__ == "__main__":
    import resource

    seconds = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 1 + _CHECK_SECONDS  # beside the imports
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if sys.platform != "darwin":  # where a process has more addresses than that from its start
        resource.setrlimit(resource.RLIMIT_AS, (_CHECK_BYTES, _CHECK_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(_problem(json.loads(sys.stdin.read()))))
