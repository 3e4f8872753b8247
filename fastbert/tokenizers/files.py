"""Finding, reading and writing the files of a tokenizer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


def read_json(path: Path) -> Any:
    """The object in a JSON file; ValueError with the place where it is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"'{path}' is not valid JSON ({error}); it is broken or cut short: fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must be a JSON object, but it is a {type(content).__name__}.")
    return content


def write_bytes(path: Path, content: bytes) -> None:
    """Writes beside `path` and renames, so that no reader ever sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        # mkstemp makes files private; a saved tokenizer has the permissions any new file has.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Writes sorted, indented JSON."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def existing_file(path: str | os.PathLike[str] | None, what: str, hint: str) -> Path:
    """`path` as a Path; FileNotFoundError saying `what` is missing and `hint` otherwise."""
    if path is None:
        raise FileNotFoundError(f"No {what} was given; {hint}")
    found = Path(path).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"The {what} '{found}' does not exist; {hint}")
    return found
