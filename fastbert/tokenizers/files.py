"""Names and whereabouts of a tokenizer's files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fastbert.checkpoints import hub

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
TOKENIZER_FILE = "tokenizer.json"
CHAT_FILE = "chat_template.jinja"
CHAT_FOLDER = "additional_chat_templates"


def find_folder(
    name_or_path: str | os.PathLike[str],
    files: Iterable[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
) -> Path:
    """Find the local folder that holds a tokenizer: the one named, or the hub's copy of it.

    Args:
        name_or_path: a folder, or a hub id when huggingface_hub is installed.
        files: names of the files that are downloaded where the repository has them.
        subfolder: folder inside `name_or_path`.
        revision: branch, tag or commit on the hub.
        cache_dir: the hub's cache.
        local_files_only: do not ask the hub.
        token: access token of the hub.
        force_download: download files that are in the cache, too.

    Raises:
        FileNotFoundError: where there is neither such a folder nor such a repository.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        folder = path / subfolder
        if not folder.is_dir():
            raise FileNotFoundError(f"'{path}' has no subfolder '{subfolder}'.")
        return folder
    if path.is_file():
        raise FileNotFoundError(
            f"'{path}' is a file; from_pretrained takes the folder that holds it. To use a single "
            "vocabulary file, call the class itself with it."
        )
    looks_local = path.is_absolute() or str(name_or_path).count("/") > 1
    if looks_local:
        raise FileNotFoundError(
            f"There is no folder '{path}'. Pass the folder of a saved tokenizer, or a hub id such "
            "as 'almanach/camembert-base'."
        )
    prefix = f"{subfolder}/" if subfolder else ""
    snapshot = hub.folder(
        str(name_or_path),
        [prefix + name for name in files],
        revision=revision,
        cache_dir=None if cache_dir is None else str(cache_dir),
        local_files_only=local_files_only,
        token=token,
        force_download=force_download,
    )
    return snapshot / subfolder


def existing_file(path: str | os.PathLike[str] | None, what: str, hint: str) -> Path:
    """Check that a file exists and return its path.

    Args:
        path: the file; None where none was given.
        what: what the error calls the file.
        hint: the end of the error's sentence, which says what to do.

    Raises:
        FileNotFoundError: where there is no such file.
    """
    if path is None:
        raise FileNotFoundError(f"No {what} was given; {hint}")
    found = Path(path).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"The {what} '{found}' does not exist; {hint}")
    return found
