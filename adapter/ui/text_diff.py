"""Which words of one text are not in another, as HTML. Knows texts only."""

from __future__ import annotations

import difflib
import html
import re


def difference(first: str, other: str) -> tuple[str, int, int]:
    """`other` as HTML in which the words are marked that `first` has not in their place.

    Also how many words that are, and how many `other` has. A word ends at white space.
    """
    words = re.findall(r"(\S+)(\s*)", other.strip())  # each with the space behind it
    texts = [word for word, _ in words]
    matcher = difflib.SequenceMatcher(None, first.split(), texts, autojunk=False)
    shown, changed = [], 0
    for kind, _, _, start, end in matcher.get_opcodes():
        if start == end:
            continue
        run = "".join(word + space for word, space in words[start:end])
        text, space = run.rstrip(), run[len(run.rstrip()) :]
        if kind == "equal":
            shown.append(html.escape(run))
        else:
            changed += end - start
            shown.append(f"<mark>{html.escape(text)}</mark>{space}")
    return "".join(shown), changed, len(words)
