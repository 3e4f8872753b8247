"""Small files of checkpoints: JSON is read with one error sentence, writing is atomic.

Everything that the package writes goes through `replaced`, so there is one place that decides what
an interrupted write leaves behind.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ContentT = TypeVar("ContentT", dict[str, Any], list[Any])

_NAMES = {dict: "object", list: "array"}


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
        temporary.replace(path)
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
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=ensure_ascii)
    write_text(path, text + "\n")


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
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=object_hook)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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
