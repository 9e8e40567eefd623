"""Toasts: notes, warnings and refusals. Gradio renders them as HTML, with pictures, forms and styles in them."""

import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from adapter.errors import AdapterError
from adapter.server.generation import FAILED, browser_text

log = logging.getLogger(__name__)


def toast(what: AdapterError | str, seconds: float = 8) -> None:
    """Shows a note, or an error's sentence as a warning, on the page that sent the current event."""
    if isinstance(what, AdapterError):
        gr.Warning(html.escape(browser_text(what), quote=False), duration=12)
    else:
        gr.Info(html.escape(what, quote=False), duration=seconds)


def readable(error: Exception, what: str) -> AdapterError:
    """The error as a visitor may read it; an unexpected one is logged. what: that has failed, for the log."""
    if isinstance(error, AdapterError):
        return error
    log.error("%s failed", what, exc_info=error)
    return AdapterError(FAILED)


@contextmanager
def errors_as_toasts(what: str) -> Iterator[list[Exception]]:
    """Ends the block at an error, shows it and adds it to the list. what: that has failed, for the log."""
    errors: list[Exception] = []
    try:
        yield errors
    except Exception as error:
        errors.append(error)
        toast(readable(error, what))


def refusal(why: AdapterError | str) -> gr.Error:
    """The exception that ends an event with a toast."""
    text = browser_text(why) if isinstance(why, AdapterError) else why
    return gr.Error(html.escape(text, quote=False), print_exception=False)
