"""Words as they were written, in Gradio's Chatbot, which takes them for Markdown and HTML.

What looks like a tag would vanish from them, and a picture's address would make the browser ask whoever it names.
So an invisible character stands behind what such things begin with, on the way to the browser, and goes on the way
back. page.js takes it out of what is copied.
"""

from __future__ import annotations

import re

MARK = "\u2060"  # word joiner: neither seen nor a place to break a line
# A tag, an entity, a picture, a bracket that Markdown would take the backslash from. What has the mark already
# gets another, so that only what was put in is taken out.
_BEGINS = re.compile(rf"<(?=[A-Za-z/!?{MARK}])|&(?=[A-Za-z#{MARK}])|!(?=[\[{MARK}])|\\(?=[()\[\]{MARK}])")
_MARKED = re.compile(rf"([<&!\\]){MARK}")


def marked(text: str) -> str:
    return _BEGINS.sub(rf"\g<0>{MARK}", text)


def unmarked(text: str) -> str:
    """What `marked` was given."""
    return _MARKED.sub(r"\1", text)
