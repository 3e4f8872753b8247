"""Small files of checkpoints: JSON is read with one error sentence, writing is atomic and durable.

A single file is written through `replaced`, several that belong together through
`fastbert.checkpoints.transaction`, so there are two places that decide what an interrupted write
leaves behind.
"""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ContentT = TypeVar("ContentT", dict[str, Any], list[Any])

_NAMES = {dict: "object", list: "array"}
_LFS = b"version https://git-lfs.github.com/spec/"


def folder_to_save_in(name: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that a save names.

    Raises:
        ValueError: for an empty name, which would be the current folder, or the name of something
            that is no folder.
    """
    if os.fspath(name) == "":
        raise ValueError("The folder's name is empty; give the folder that save_pretrained fills.")
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        what = "a file" if folder.is_file() else "no folder"
        raise ValueError(f"{folder} is {what}; save_pretrained needs a folder.")
    return folder


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_mode(new: Path, former: Path) -> None:
    """Give a file the permissions of the one that it will replace, where there is one.

    Writing into the former file would have kept them, so that a private file stays private.
    """
    try:
        found = former.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode):
        new.chmod(stat.S_IMODE(found.st_mode))


def refuse_pointer(path: Path, head: bytes) -> None:
    """Refuse what git leaves in the place of a large file that it did not fetch.

    Args:
        path: the file, for the message.
        head: how it begins.

    Raises:
        ValueError: for a pointer of git-lfs.
    """
    if head.startswith(_LFS):
        raise ValueError(
            f"{path} is a git-lfs pointer, not the file that it stands for; fetch it with "
            "`git lfs pull`, or download it again."
        )


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Replace a file by what the block writes, whole or not at all.

    Readers see the former file until the block ends, and the new one from then on. Where the block
    raises, the former file stays and nothing is left beside it.

    Args:
        path: the file to replace or make; its folder must exist.

    Yields:
        The path of a file in the same folder, not yet there, for the block to write.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        keep_mode(temporary, path)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a file of UTF-8 text, whole or not at all; line ends are written as they are."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any, *, ensure_ascii: bool = True) -> None:
    """Write sorted, indented JSON that ends in a newline, whole or not at all.

    Args:
        path: the file to write.
        content: values that JSON can hold.
        ensure_ascii: whether other characters are written as escapes.
    """
    write_text(path, json_text(content, ensure_ascii=ensure_ascii))


def json_text(content: Any, *, ensure_ascii: bool = True) -> str:
    """Return sorted, indented JSON that ends in a newline."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=ensure_ascii) + "\n"


def read_json(
    path: Path,
    expected: type[ContentT],
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> ContentT:
    """Read a JSON file.

    Args:
        path: an existing file.
        expected: `dict` where the file must hold an object, `list` where it must hold an array.
        object_hook: called with every object, innermost first; its result stands for the object.

    Raises:
        ValueError: when the file is not JSON in UTF-8, or holds another kind of value.
    """
    raw = path.read_bytes()
    refuse_pointer(path, raw)
    try:
        content = json.loads(raw.decode("utf-8"), object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{path}' is not valid JSON ({error}); it is broken or cut short: download it or "
            "write it again."
        ) from error
    if not isinstance(content, expected):
        raise ValueError(
            f"'{path}' must be a JSON {_NAMES[expected]}, but it is a {type(content).__name__}; "
            "download it or write it again."
        )
    return content
