"""A finished adapter to the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from adapter.errors import AdapterError, first_line
from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS
from train.run_folder import METRICS

# Nothing else leaves this machine: not state.pt, the data, logs or checkpoints.
PUBLISHED = (CONFIG, WEIGHTS, CARD, METRICS, "recipe.yaml")


class PushError(AdapterError):
    """An adapter cannot be sent to the Hub."""


def check_push(repo: str | None) -> None:
    """Raises PushError, before a run, if its adapter surely could not be sent to `repo`; None: to nowhere."""
    if repo is None:
        return
    try:
        validate_repo_id(repo)
        is_valid = repo.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise PushError(f"push_to must be a repository on the Hub, as user/name, got '{repo}'.")
    if constants.is_offline_mode():
        raise PushError("push_to needs the Hub, and HF_HUB_OFFLINE is set. Unset it, or leave push_to out.")
    if get_token() is None:
        raise PushError("push_to needs a login on the Hub. Run `hf auth login`, set HF_TOKEN, or leave it out.")


def push(folder: Path, repo: str) -> str:
    """Sends the adapter in `folder`, its card, recipe and figures to `repo`, which is made if it is new.

    Returns its address. Raises PushError, which says how to try again.
    """
    try:
        api = HfApi()
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(PUBLISHED),
            commit_message="An adapter by `python -m train`",
        )
    except Exception as error:  # of the network, of the Hub, of the disk: the run is finished in any case
        files = " ".join(f"--include {name}" for name in PUBLISHED if (folder / name).exists())
        raise PushError(
            f"The adapter is finished and saved, but could not be sent to {repo}. Send it again from the folder "
            f"'{folder.name}' with: hf upload {repo} . . {files}",
            f"{os.fspath(folder)}: {first_line(error)}",
        ) from error
    return str(url)
