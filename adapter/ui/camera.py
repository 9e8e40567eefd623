"""The button beside the message box that takes a picture, and its dialog. What they do is in page.js, which also
finds here what it calls the pictures of the conversation.
"""

from __future__ import annotations

import html

from adapter.ui.texts import page as texts

_ICON = (
    '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" '
    'stroke-linejoin="round" aria-hidden="true"><path d="M4 8h3l1.6-2.4h6.8L17 8h3a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H4'
    'a1 1 0 0 1-1-1V9a1 1 0 0 1 1-1z"/><circle cx="12" cy="13" r="3.4"/></svg>'
)


def camera_html() -> str:
    said = {
        "none": texts.NO_CAMERA,
        "refused": texts.CAMERA_REFUSED,
        "insecure": texts.CAMERA_INSECURE,
        "busy": texts.CAMERA_BUSY,
        "picture": texts.SHOW_PICTURE,
    }
    data = " ".join(f'data-{name}="{html.escape(text)}"' for name, text in said.items())
    take, snap, cancel = (html.escape(text) for text in (texts.TAKE_PICTURE, texts.SNAP, texts.CANCEL))
    return (
        f'<button type="button" name="open" aria-label="{take}" title="{take}">{_ICON}</button>'
        f'<dialog aria-label="{take}" class="silent" {data}><video playsinline muted></video>'
        f'<p role="status"></p><div><button type="button" name="close">{cancel}</button>'
        f'<button type="button" name="take">{snap}</button></div></dialog>'
    )
