"""The command line that gives the newest answer of a conversation once more. Knows conversations, records and the
options of `python -m adapter generate`; knows no components.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapter.errors import AdapterError
from adapter.serve.settings import Settings
from adapter.ui import conversation as talk
from adapter.ui.answer_record import read_settings
from adapter.ui.conversation import Entry
from adapter.ui.dividers import answerer
from adapter.ui.texts import page as texts
from adapter.ui.theme import Cards

if TYPE_CHECKING:
    from adapter.base.llama import Base


def command(history: Sequence[Entry], base: Base, store: Cards) -> str:
    """A line for a POSIX shell; empty if the newest turn has no answer that can be had again.

    One message is given as it is. A conversation of several, or with a picture, comes from the exported file,
    which has the picture as the model saw it. Folders of this machine are named by their last part.
    """
    answered = talk.newest_answer(history)
    settings = read_settings(answered.record) if answered else None
    if answered is None or settings is None or talk.awaits_answer(history):
        return ""
    words = ["python", "-m", "adapter", *_folders(settings, store), "generate", *_base(base), *_options(settings)]
    asked = answered.messages
    if len(asked) == 1 and answered.picture is None:
        words += ["--", asked[0].text] if asked[0].text.startswith("-") else [asked[0].text]
    else:
        words += ["--messages", texts.EXPORT_NAME]
    return shlex.join(words)


def _folders(settings: Settings, store: Cards) -> list[str]:
    """Where the adapters lie that did not come with the program."""
    from adapter.serve.store import SHIPPED

    found: dict[str, None] = {}
    for name in answerer(settings):
        try:
            folder: Path = store.folder(name).parent
        except AdapterError:
            continue
        if folder != SHIPPED:
            found[folder.name] = None
    return [word for name in found for word in ("--adapters", name)]


def _base(base: Base) -> list[str]:
    from adapter.base.embedded import BASE
    from adapter.base.llama import QUANTIZATIONS

    name = base.fingerprint.name
    found = [] if name == BASE else ["--base", Path(name).name if Path(name).is_absolute() else name]
    # What "auto" would choose needs no mention.
    cuda = base.device.type == "cuda"
    automatic = base.quantization == "nf4" if cuda else base.quantization not in QUANTIZATIONS
    return found if automatic else [*found, "--quantization", base.quantization]


def _options(settings: Settings) -> list[str]:
    found = []
    if settings.adapter:
        found += ["--adapter", settings.adapter, "--strength", f"{settings.strength}"]
    if settings.mix:
        found += ["--mix", f"{settings.mix}={settings.mix_strength}"]
    found += ["--temperature", f"{settings.temperature}", "--top-p", f"{settings.top_p}"]
    found += ["--max-new-tokens", f"{settings.max_tokens}", "--seed", f"{settings.seed}"]
    for option, numbers in (("--mute-layer", settings.mute_layers), ("--mute-head", settings.mute_heads)):
        found += [word for number in numbers for word in (option, str(number))]
    return found
