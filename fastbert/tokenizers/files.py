"""Finding, reading and writing the files of a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fastbert.checkpoints import hub

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
TOKENIZER_FILE = "tokenizer.json"


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
    """The local folder that holds a tokenizer: `name_or_path` itself, or the hub's copy of it.

    Only `files` are downloaded. Raises FileNotFoundError where there is neither such a folder nor,
    through `huggingface_hub`, such a repository.
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
    """`path` as a Path; FileNotFoundError saying `what` is missing and `hint` otherwise."""
    if path is None:
        raise FileNotFoundError(f"No {what} was given; {hint}")
    found = Path(path).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"The {what} '{found}' does not exist; {hint}")
    return found
