"""Checkpoints by hub id, through `huggingface_hub`; without a network from its cache, and at once.

huggingface_hub repeats a request that finds no server for about half a minute, for every file. Here
the hub is asked once whether it is there, with huggingface_hub's own time limit, and the answer
holds for the next files; where the hub does not answer, only the cache is read. A file of a commit
that is in the cache is taken from there without a question, since a commit never changes.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

# Seconds for which an answer holds: loading a model asks for about a dozen files.
_BELIEVED = 20.0
_COMMIT = re.compile("[0-9a-f]{40}")

_log = logging.getLogger("fastbert")


class HubOptions(TypedDict, total=False):
    """How the files of a repository are had; the names are those of hf_hub_download."""

    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool
    force_download: bool


@dataclass
class _Answer:
    """What came of asking whether the hub is there.

    Attributes:
        reason: why the hub cannot be asked, as the end of a sentence; None where it can.
        until: when the hub is to be asked again, by time.monotonic().
        told: whether somebody has been warned that files come from the cache.
    """

    reason: str | None
    until: float
    told: bool = False


_answers: dict[str, _Answer] = {}


def file(
    repo: str, name: str, *, optional: bool = False, **options: Unpack[HubOptions]
) -> Path | None:
    """Find one file of a repository in the cache, or download it.

    Args:
        repo: "owner/name".
        name: path of the file inside the repository.
        optional: return None where the repository has no such file, or, without a network, where
            the cache has none.
        **options: revision, cache_dir, token, local_files_only, force_download.

    Returns:
        The path of the file in the cache.

    Raises:
        FileNotFoundError: when huggingface_hub is not installed, or the file cannot be had.
    """
    library = _library(repo)
    missing = f"{repo} on the hub has no {name}."
    kept = _of_a_commit(library, repo, name, options)
    if isinstance(kept, str):
        return Path(kept)
    if kept is not None:
        if optional:
            return None
        raise FileNotFoundError(missing)
    with _explained(library, repo, name, options) as reason:
        try:
            found = Path(library.hf_hub_download(repo, name, **options))
        except library.errors.EntryNotFoundError as error:
            # A file that is only not in the cache raises an error of this kind too.
            unknown = isinstance(error, library.errors.LocalEntryNotFoundError)
            if optional and (reason is not None or not unknown):
                return None
            if unknown:
                raise
            raise FileNotFoundError(missing) from error
    _warn_of_the_cache(reason)
    return found


def folder(repo: str, names: Iterable[str], **options: Unpack[HubOptions]) -> Path:
    """Find a folder with those of the named files that a repository has; see `file`."""
    library = _library(repo)
    patterns = list(names)
    with _explained(library, repo, patterns[0], options) as reason:
        found = Path(library.snapshot_download(repo, allow_patterns=patterns, **options))
    _warn_of_the_cache(reason)
    return found


def cache_only_because(local_files_only: bool = False) -> str | None:
    """Return why only the cache is read, as the end of a sentence; None where the hub is asked.

    The hub is not asked for this: the answer is the latest one.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        return "huggingface_hub is not installed"
    answer = _answers.get(constants.ENDPOINT)
    return _forbidden(local_files_only) or (None if answer is None else answer.reason)


def _library(repo: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise FileNotFoundError(
            f"{repo} is not a folder here, and a hub id needs the package huggingface_hub: "
            "pip install fastbert-kernels[hub], or give the path of a downloaded checkpoint."
        ) from error
    return huggingface_hub


def _forbidden(local_files_only: bool) -> str | None:
    """Return who forbids to ask the hub, as the end of a sentence; None where nobody does."""
    from huggingface_hub import constants

    if local_files_only:
        return "local_files_only=True forbids to ask the hub"
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else None


def _of_a_commit(library: Any, repo: str, name: str, options: HubOptions) -> object:
    """Look into the cache where the revision is a commit, which never changes.

    Returns:
        The path of the file as a str; another object where the hub has said before that the commit
        has no such file; None where the hub is to be asked.
    """
    revision = options.get("revision")
    if revision is None or not _COMMIT.fullmatch(revision) or options.get("force_download"):
        return None
    try:
        return library.try_to_load_from_cache(
            repo, name, cache_dir=options.get("cache_dir"), revision=revision
        )
    except library.errors.HFValidationError:
        return None  # The download says what is wrong with the id.


def _unreachable(library: Any, repo: str, name: str, options: HubOptions) -> str | None:
    """Return why the hub cannot be reached, None where it can; it is asked once in a while."""
    endpoint = library.constants.ENDPOINT
    answer = _answers.get(endpoint)
    if answer is None or time.monotonic() > answer.until:
        reason = _ask(library, repo, name, options)
        answer = _Answer(reason, time.monotonic() + _BELIEVED)
        _answers[endpoint] = answer
    return answer.reason


def _ask(library: Any, repo: str, name: str, options: HubOptions) -> str | None:
    """Ask the hub about a file, once; whatever it says about the file, it is there."""
    constants, errors = library.constants, library.errors
    try:
        url = library.hf_hub_url(repo, name, revision=options.get("revision"))
        library.get_hf_file_metadata(
            url, token=options.get("token"), timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status < 500:
            return None
        return f"{constants.ENDPOINT} cannot be reached (it answers with status {status})"
    except (errors.FileMetadataError, errors.LocalTokenNotFoundError, ValueError):
        # The id, the token or the answer is wrong: the download says in which way.
        return None
    except Exception as error:  # Of several HTTP libraries, by the version of huggingface_hub.
        return f"{constants.ENDPOINT} cannot be reached ({_told(error)})"
    return None


def _warn_of_the_cache(reason: str | None) -> None:
    """Warn, once an answer, that files come from the cache since the hub cannot be reached."""
    for answer in _answers.values():
        if reason is not None and answer.reason == reason and not answer.told:
            answer.told = True
            _log.warning("%s: files come from the hub's cache and may be outdated.", reason)


@contextmanager
def _explained(library: Any, repo: str, name: str, options: HubOptions) -> Iterator[str | None]:
    """Turn the library's errors into a sentence, and keep it to the cache where the hub is away.

    Args:
        library: huggingface_hub.
        repo: "owner/name".
        name: a file that the hub may be asked about.
        options: those of the library; `local_files_only` is set where the hub cannot be asked.

    Yields:
        Why the hub cannot be asked, as the end of a sentence; None where it can.
    """
    reason = _forbidden(bool(options.get("local_files_only")))
    if reason is None:
        reason = _unreachable(library, repo, name, options)
    if reason is not None:
        if options.get("force_download"):
            raise FileNotFoundError(f"{repo} cannot be downloaded again: {reason}.")
        options["local_files_only"] = True
    try:
        yield reason
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
    """Return the first line of what an error says."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), "it gave no reason")
