"""Publishes a trained adapter on the Hugging Face Hub."""

import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from adapter.errors import AdapterError, first_line
from adapter.method.config import CARD, CONFIG, WEIGHTS

# Nothing else of a run leaves this machine but the watched question and its answers, in the card.
PUBLISHED = (CONFIG, WEIGHTS, CARD)


def check_repo(repo: str) -> None:
    """Raises AdapterError if `repo` is not `user/name`, or if HF_HUB_OFFLINE is set."""
    try:
        validate_repo_id(repo)
        is_valid = repo.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise AdapterError(f"An adapter is sent to a repository on the Hub, as user/name, got '{repo}'.")
    if constants.is_offline_mode():
        raise AdapterError("Sending an adapter needs the Hub, and HF_HUB_OFFLINE is set. Unset it.")


def machine_token() -> str:
    """The Hub token of the user who runs this program. Raises AdapterError if there is none."""
    if (token := get_token()) is None:
        raise AdapterError("Sending an adapter needs a login: run `.venv/bin/hf auth login`, or set HF_TOKEN.")
    return token


def push(folder: Path, repo: str, token: str, section: str = "") -> str:
    """Sends the adapter to `repo` and returns its address. section: for its card. Raises AdapterError."""
    try:
        api = HfApi(token=token)
        url = api.create_repo(repo, exist_ok=True)
        files: dict[str, Path | bytes] = {name: folder / name for name in PUBLISHED if (folder / name).exists()}
        if section and CARD in files:
            files[CARD] = f"{(folder / CARD).read_text(encoding='utf-8').rstrip()}\n\n{section}".encode()
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo, operations, commit_message="An adapter for LLaMA")
    except Exception as error:  # of the network, of the Hub, of the disk
        text = f"The adapter could not be sent to {repo}. Check name and login, or try again later."
        raise AdapterError(text, f"{os.fspath(folder)}: {first_line(error)}") from error
    return str(url)
