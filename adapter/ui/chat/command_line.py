"""The command line that reproduces the last answer of a conversation."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from adapter.errors import AdapterError
from adapter.serve.settings import Settings
from adapter.server.generation import AdapterCatalog
from adapter.ui import conversation
from adapter.ui.conversation import Entry
from adapter.ui.texts import page as texts

if TYPE_CHECKING:
    from adapter.base.llama import Base


def command_line(history: Sequence[Entry], base: Base, catalog: AdapterCatalog) -> str:
    """A line for a POSIX shell; empty if the last turn has no answer that can be reproduced.

    A single message is an argument. A conversation of several, or with a picture, is read from the exported file,
    which holds the picture as the model saw it. Folders are named without their path on this machine.
    """
    from adapter.base.embedded import BASE
    from adapter.base.llama import QUANTIZATIONS

    answered = conversation.last_recorded_answer(history)
    asked = len(conversation.without_last_answer(history))
    if answered is None or not any(entry.record for entry in history[asked:]):
        return ""
    settings = answered.record.settings
    words = ["python", "-m", "adapter", *_adapter_folders(settings, catalog), "generate"]
    if (name := base.fingerprint.name) != BASE:
        words += ["--base", name]
    # The quantization is left out where it is what "auto" chooses: a packed one. On a GPU free memory decides.
    if base.quantization in QUANTIZATIONS and not base.quantization.startswith("packed"):
        words += ["--quantization", base.quantization]
    words += _settings_options(settings)
    messages = answered.messages
    if len(messages) == 1 and answered.picture is None:
        words += ["--", messages[0].text] if messages[0].text.startswith("-") else [messages[0].text]
    else:
        words += ["--messages", texts.EXPORT_NAME]
    return shlex.join(words)


def _adapter_folders(settings: Settings, catalog: AdapterCatalog) -> list[str]:
    """Options for the folders of adapters that do not come with the program."""
    from adapter.serve.store import SHIPPED

    folders: dict[str, None] = {}
    for name in settings.adapters:
        with suppress(AdapterError):
            if (folder := catalog.folder(name).parent) != SHIPPED:
                folders[folder.name] = None
    return [word for name in folders for word in ("--adapters", name)]


# The options that are called otherwise than their settings.
_OPTIONS = {"max_tokens": "--max-new-tokens", "mute_layers": "--mute-layer", "mute_heads": "--mute-head"}


def _settings_options(settings: Settings) -> list[str]:
    """Of what differs from the defaults, which are the command line's too."""
    options, default = [], Settings()
    for name, value in settings:
        if value == getattr(default, name) or name == "mix_strength":
            continue
        values = value if isinstance(value, tuple) else (value,)
        if name == "mix":
            values = (f"{settings.mix}={settings.mix_strength}",)
        options += [f"{_OPTIONS.get(name, '--' + name.replace('_', '-'))}={one}" for one in values]
    return options
