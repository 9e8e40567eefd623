"""Adapters from the Hugging Face Hub: safetensors and text files only, at a known commit."""

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, get_session, hf_hub_url, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from adapter.errors import AdapterError, BadInput, LoadError, first_line

_REPO = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_SHARDS = ["model*-of-*.safetensors"]  # of a base
_FILES = ["*.safetensors", "*.json", "*.md"]  # no .bin, no .pth: a stranger's pickle is not even fetched
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
_SECONDS = 20.0  # that the Hub may be silent


def parse(name: str) -> tuple[str, str | None] | None:
    """(repository, revision or None) of `user/repo` or `user/repo@revision`; None if `name` is neither."""
    match = _REPO.fullmatch(name)
    return None if match is None else (match["repo"], match["revision"])


def fetch(repo: str, revision: str | None = None) -> tuple[Path, str]:
    """The folder of a repository in the local cache, and its commit; offline the cached one. Raises LoadError."""
    try:
        found = snapshot_download(repo, revision=revision, allow_patterns=_FILES, ignore_patterns=_SHARDS)
    except Exception as error:  # a proxy's or a connection's is of another library
        raise _not_fetched(repo, revision, error) from error
    folder = Path(str(found))
    return folder, folder.name


def download(
    repo: str, revision: str | None, names: Collection[str], folder: Path, most: int, token: str | bool
) -> list[Path]:
    """Downloads those of a repository's files that are called `names` into `folder`, past the local cache.

    most: bytes, of all together. token: False for none, True for this machine's. Raises BadInput for a repository
    that holds a pickle, a path that leads out of it, or too much, and LoadError if it cannot be read.
    """
    try:
        info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True, timeout=_SECONDS)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        for name in files:
            if PurePosixPath(name).suffix.lower() in PICKLES:
                raise BadInput(f"'{repo}' holds '{ascii(name)[1:-1]}', which can hold code. Nothing was fetched.")
            if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                raise BadInput(f"'{repo}' names a file outside of itself. Nothing was fetched.")
        wanted = [name for name in names if name in files]
        if sum(files[name] for name in wanted) > most:
            raise _too_large(repo, most)
        for name in wanted:
            most -= _download(hf_hub_url(repo, name, revision=info.sha), folder / name, most, repo, token)
    except AdapterError:
        raise
    except Exception as error:  # of the network, of the Hub, of the disk
        raise _not_fetched(repo, revision, error) from error
    return [folder / name for name in wanted]


def _download(url: str, path: Path, most: int, repo: str, token: str | bool) -> int:
    """Returns the number of bytes, which may be other than the Hub has said."""
    size, headers = 0, build_hf_headers(token=token)
    with (
        get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_SECONDS) as response,
        open(path, "wb") as file,
    ):
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(2**20):
            size += len(chunk)
            if size > most:
                raise _too_large(repo, most)
            file.write(chunk)
    return size


def _too_large(repo: str, most: int) -> BadInput:
    return BadInput(f"The adapter in '{repo}' has more than {most // 2**20:,} MB, the most that is fetched here.")


def _not_fetched(repo: str, revision: str | None, error: Exception) -> LoadError:
    named = f"'{repo}'" if revision is None else f"'{repo}' at '{revision}'"
    if isinstance(error, GatedRepoError):
        return LoadError(f"{named} is gated. Accept its terms on the Hub and run `.venv/bin/hf auth login`.")
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        login = "log in by `.venv/bin/hf auth login` if it is private, or give a folder that is here"
        return LoadError(f"The Hub shows no {named}. Check the name and the revision, {login}.")
    if constants.is_offline_mode():
        return LoadError(
            f"{named} is not in the local cache and HF_HUB_OFFLINE is set. Unset it, or give a folder."
        )
    return LoadError(f"Cannot fetch {named}. Check the network, or give a folder.", first_line(error))
