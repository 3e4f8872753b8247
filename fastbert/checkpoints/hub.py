"""Checkpoints by hub id, through `huggingface_hub`; without a network from its cache, and at once.

huggingface_hub repeats a request that finds no server for about half a minute, for every file.
Here the server is looked for once, for a few seconds; where there is none, only the cache is asked.
"""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Seconds to wait for the server, and for which the answer is believed: loading a model asks for
# about a dozen files.
_PATIENCE = 3.0
_BELIEVED = 20.0

_answers: dict[tuple[str, int], tuple[float, str | None]] = {}


def file(repo: str, name: str, *, optional: bool = False, **options: Any) -> Path | None:
    """One file of a repository, downloaded or from the cache.

    Args:
        repo: "owner/name".
        name: path of the file inside the repository.
        optional: return None where the repository has no such file, or, without a network, where
            the cache has none.
        **options: revision, cache_dir, token, local_files_only, force_download.

    Raises:
        FileNotFoundError: when huggingface_hub is not installed, or the file cannot be had.
    """
    library = _library(repo)
    missing = library.errors.EntryNotFoundError
    with _explained(library, repo, options) as offline:
        try:
            return Path(library.hf_hub_download(repo, name, **options))
        except missing as error:
            # What is only not at hand is an error of this kind too.
            unknown = isinstance(error, library.errors.LocalEntryNotFoundError)
            if optional and (offline or not unknown):
                return None
            if unknown:
                raise
            raise FileNotFoundError(f"{repo} on the hub has no {name}.") from error


def folder(repo: str, names: Iterable[str], **options: Any) -> Path:
    """A folder with those of the named files that a repository has; see `file`."""
    library = _library(repo)
    with _explained(library, repo, options):
        return Path(library.snapshot_download(repo, allow_patterns=list(names), **options))


def offline_because(local_files_only: bool = False) -> str | None:
    """Why the hub cannot be asked, as the end of a sentence; None where it can."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return "huggingface_hub is not installed"
    if local_files_only:
        return "local_files_only=True forbids to ask the hub"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _unreachable(constants.ENDPOINT)


def _library(repo: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise FileNotFoundError(
            f"{repo} is not a folder here, and a hub id needs the package huggingface_hub: "
            "pip install fastbert-kernels[hub], or give the path of a downloaded checkpoint."
        ) from error
    return huggingface_hub


def _unreachable(endpoint: str) -> str | None:
    parts = urlsplit(endpoint)
    if parts.scheme in urllib.request.getproxies():
        return None  # Names are the proxy's to resolve.
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    asked, answer = _answers.get((host, port), (-_BELIEVED, None))
    if time.monotonic() - asked > _BELIEVED:
        try:
            socket.create_connection((host, port), timeout=_PATIENCE).close()
            answer = None
        except OSError as error:
            answer = f"{endpoint} cannot be reached ({error.strerror or error})"
        _answers[host, port] = (time.monotonic(), answer)
    return answer


@contextmanager
def _explained(library: Any, repo: str, options: dict[str, Any]) -> Iterator[bool]:
    """Sets `local_files_only` where the hub cannot be asked, yields whether that is so, and turns
    the library's errors into a sentence."""
    reason = offline_because(bool(options.get("local_files_only")))
    if reason is not None:
        if options.get("force_download"):
            raise FileNotFoundError(f"{repo} cannot be downloaded again: {reason}.")
        options["local_files_only"] = True
    try:
        yield reason is not None
    except library.errors.LocalEntryNotFoundError as error:
        told = _told(error) if reason is None else f"{reason}, and the hub's cache does not hold it"
        raise FileNotFoundError(
            f"{repo} is not a folder here and could not be had from the hub: {told}. Check the "
            "name and the network, or give the path of a downloaded checkpoint."
        ) from error
    except FileNotFoundError:
        raise
    except Exception as error:  # Of several HTTP libraries, by the version of huggingface_hub.
        raise FileNotFoundError(
            f"{repo} is not a folder here and could not be had from the hub "
            f"({type(error).__name__}: {_told(error)}). Check the name, the revision, the network "
            "and, for a private repository, the token."
        ) from error


def _told(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), "it gave no reason")
