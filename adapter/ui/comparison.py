"""Several answers to one message, written as rows of one batch: progress, words that differ, HTML."""

import difflib
import html
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from adapter.errors import AdapterError
from adapter.serve.request import GenerationEvent, GenerationRequest, read_together
from adapter.server.generation import ServingEngine, browser_text
from adapter.server.limits import ANSWERS_PER_MINUTE, RateLimited
from adapter.ui.answer_stream import AnswerProgress
from adapter.ui.json_table import differing_fields, read_object, table_html
from adapter.ui.session import Change
from adapter.ui.status import REDRAW_SECONDS
from adapter.ui.texts import page as texts
from adapter.ui.toasts import readable


@dataclass
class Pane(AnswerProgress):
    message: str = "…"  # the page's own, shown as long as there is no text
    marked_html: str | None = None  # the text with its differences marked
    failed: bool = False

    def add(self, event: GenerationEvent | AdapterError) -> None:
        if isinstance(event, AdapterError):
            self.failed = True
            self.message = browser_text(event)
            self.notes.append(self.message)
        elif not event.is_output:
            self.message = texts.before_answer(event.position, event.progress)
        else:
            super().add(event)
            if event.finish_reason:
                cancelled = event.finish_reason == "cancelled"
                self.message = texts.STOPPED_BEFORE_TEXT if cancelled else texts.EMPTY_ANSWER

    def to_html(self) -> str:
        line = self.stats_line() if self.token_ids else ""
        stats = f'<div class="stats">{html.escape(line)}</div>' if line else ""
        if not self.text.strip():
            return f'<div class="answer-text muted">{html.escape(self.message)}</div>{stats}'
        body = self.marked_html or table_html(self.text) or html.escape(self.text.strip())
        return f'<div class="answer-text">{body}</div>{stats}'


def answer_together(
    engine: ServingEngine, change: Change, panes: Sequence[Pane], requests: Sequence[GenerationRequest]
) -> Iterator[None]:
    """Adds the answers to the panes until all have ended; yields whenever there is something new to show. One that
    is refused has its reason in its pane. Raises if all are, or if the address may not have so many now.
    """
    with ExitStack() as stack:
        answers, errors = {}, []
        for index, request in enumerate(requests):
            try:
                answers[index] = stack.enter_context(closing(engine.submit(request)))
            except RateLimited as error:  # an address that waits so long may begin all of them
                wait = max(error.retry_after, math.ceil(60 * len(requests) / ANSWERS_PER_MINUTE))
                raise RateLimited(texts.all_refused(len(requests), wait), wait) from error
            except Exception as error:
                errors.append(readable(error, "an answer of a comparison"))
                panes[index].add(errors[-1])
        if not answers:
            raise errors[0]

        def cancel() -> None:
            for answer in answers.values():
                answer.cancel()

        change.cancel = cancel
        if change.stopped:
            cancel()
        yield
        for events in read_together(answers, REDRAW_SECONDS):
            for index, event in events:
                panes[index].add(event)
            yield


def mark(pane: Pane, other: Pane, where: str) -> None:
    """Marks in `pane` the words that differ from `other`; of a JSON object the values, if `other` has one too.
    Marks nothing if one has failed: it is not whole. where: what the note below calls `other`.
    """
    if any(one.failed or not one.text.strip() for one in (pane, other)):
        return
    if (fields := read_object(pane.text)) is None:
        pane.marked_html, changed, words = mark_differences(other.text, pane.text)
        pane.notes.append(texts.differences(changed, words, len(other.text.split()), "word", where))
    elif (others := read_object(other.text)) is not None:
        differing = differing_fields(fields, others)
        pane.marked_html = table_html(pane.text, differing)
        pane.notes.append(texts.differences(len(differing), len(fields.pairs), len(others.pairs), "field", where))


def mark_differences(first: str, other: str) -> tuple[str, int, int]:
    """`other` as HTML, words marked that `first` lacks at their place; the number of these, and of all words."""
    pairs = re.findall(r"(\S+)(\s*)", other.strip())  # (word, white space after it)
    words = [word for word, _ in pairs]
    parts, changed = [], 0
    # Words that come again and again are no marks to go by: to compare all of them may take 25 s.
    for operation, _, _, start, end in difflib.SequenceMatcher(None, first.split(), words).get_opcodes():
        if start == end:
            continue
        run = "".join(word + space for word, space in pairs[start:end])
        text, space = run.rstrip(), run[len(run.rstrip()) :]
        if operation == "equal":
            parts.append(html.escape(run))
        else:
            changed += end - start
            parts.append(f"<mark>{html.escape(text)}</mark>{space}")
    return "".join(parts), changed, len(words)
