"""Adapter folders from the Hugging Face Hub: safetensors and text files only, at a known commit."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from adapter.errors import LoadError, first_line

_REPO = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_FILES = ["*.safetensors", "*.json", "*.md"]  # no .bin, no .pth: a stranger's pickle is not even fetched


def parse(name: str) -> tuple[str, str | None] | None:
    """(repository, revision or None) of `user/repo` or `user/repo@revision`; None if `name` is neither."""
    match = _REPO.fullmatch(name)
    return None if match is None else (match["repo"], match["revision"])


def fetch(repo: str, revision: str | None = None) -> tuple[Path, str]:
    """The folder of a repository in the local cache, and its commit. Raises LoadError, also when offline."""
    named = f"'{repo}'" if revision is None else f"'{repo}' at '{revision}'"
    try:
        folder = Path(str(snapshot_download(repo, revision=revision, allow_patterns=_FILES)))
    except GatedRepoError as error:
        raise LoadError(f"{named} is gated. Accept its terms on the Hub and run `hf auth login`.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise LoadError(f"The Hub has no {named}. Check the name and the revision.") from error
    except (OSError, ValueError, RuntimeError) as error:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise LoadError(
                f"{named} is not in the local cache and HF_HUB_OFFLINE is set. Unset it, or give a folder."
            ) from error
        raise LoadError(
            f"Cannot fetch {named}. Check the network, or give a folder.", first_line(error)
        ) from error
    return folder, folder.name
