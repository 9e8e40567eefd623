"""Which tokens may come next in an answer that has a form. Knows forms and token ids; knows no logits.

What a form is, as text, is in `adapter.method.form`. llguidance compiles it for a base's vocabulary and keeps a
row's place in it.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from adapter.base.llama import Base
from adapter.errors import BadInput, first_line
from adapter.method.form import limits, with_message

_MAX_COMPILED = 16  # forms of one base that are kept
_vocabularies: weakref.WeakKeyDictionary[object, _Vocabulary] = weakref.WeakKeyDictionary()  # by tokenizer
_lock = threading.Lock()  # of the dictionary

# Of the next token: the only one that is allowed, or a bit for each, [vocab_size / 32].
Allowed = int | NDArray[np.uint32]


def start_form(base: Base, form: str, message: str) -> FormState:
    """The beginning of an answer to `message` that has the form. Raises BadInput for one that cannot be used."""
    with _lock:
        vocabulary = _vocabularies.get(base.tokenizer)
        if vocabulary is None:
            vocabulary = _vocabularies[base.tokenizer] = _Vocabulary(base)
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
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, form: str, message: str) -> LLMatcher:
        """At the beginning of an answer. Raises BadInput for a form that cannot be used."""
        grammar = with_message(form, message)
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar].deep_copy()
        matcher = self._compile(grammar)
        if grammar == form:  # of no message
            with self._lock:
                self._compiled[grammar] = matcher.deep_copy()
                while len(self._compiled) > _MAX_COMPILED:
                    self._compiled.popitem(last=False)
        return matcher

    def _compile(self, grammar: str) -> LLMatcher:
        grammars: list[dict[str, str]] = [{"name": "form", "lark_grammar": grammar}]
        if self._begins_with_space:
            grammars.insert(0, {"lark_grammar": 'start: " "? @form'})
        matcher = LLMatcher(self._tokenizer, json.dumps({"grammars": grammars}), limits=limits(), log_level=0)
        if matcher.is_error():
            raise BadInput(
                "The form is too complex for this base and message. Use a simpler form or a shorter message.",
                matcher.get_error()[:500],
            )
        return matcher


class FormState:
    """How far one answer has come in its form. For one thread at a time.

    complete: nothing can follow what has been accepted.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocab_size + 31) // 32, np.uint32)
        self._forced: deque[int] = deque()  # next tokens that are not chosen, which the matcher has read already
        self._force()

    @property
    def complete(self) -> bool:
        return not self._forced and self._matcher.is_stopped()

    def allowed(self) -> Allowed:
        """The tokens that may come next; valid until the next call. Raises BadInput if that cannot be told."""
        if self._forced:
            return self._forced[0]
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return self._bits

    def accept(self, token: int) -> None:
        """Go on behind an allowed token. Raises BadInput if that fails."""
        if self._forced:
            self._forced.popleft()
        else:
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
        """Take over the tokens that the form forces.

        All at once: llguidance would tokenise the whole forced text again for each of its tokens.
        """
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
