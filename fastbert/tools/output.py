"""Where a command writes: standard output, a file that is replaced as a whole, or a stream.

What a name stands for decides. A regular file is replaced only by a complete one, through symbolic
links, with its mode and owner. A device, a pipe or a terminal is written to as what it is.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_MOST_LINKS = 40


@dataclass
class Output:
    """An open output.

    Attributes:
        file: where to write.
        seekable: whether what was written can be written over.
        discarded: set to leave the former file as it was.
    """

    file: IO[bytes]
    seekable: bool
    discarded: bool = False

    def write(self, content: bytes) -> None:
        """Write and hand on at once, so that a reader sees answers as they come."""
        self.file.write(content)
        self.file.flush()


@contextmanager
def opened_output(name: str | None) -> Iterator[Output]:
    """Open an output.

    Args:
        name: a path; None or "-" for standard output.

    Yields:
        The output. Where the block raises, a regular file stays as it was.

    Raises:
        ValueError: when standard output is closed.
        OSError: when the output cannot be written to, with one sentence.
    """
    if name is None or name == "-":
        if sys.stdout is None:
            raise ValueError("Standard output is closed; name a file with --output.")
        sys.stdout.flush()
        yield Output(sys.stdout.buffer, seekable=False)
        return
    if not name or name.endswith("/"):
        raise IsADirectoryError(f"{name!r} names no file; give the name of a file to write.")
    path = Path(name)
    descriptor = _own_descriptor(path)
    if descriptor is not None:
        # Opening its name anew would start at the beginning of a file that is appended to.
        with os.fdopen(_duplicate(descriptor, name), "wb") as file:
            yield Output(file, seekable=False)
        return
    before = _status(path)
    if before is None or stat.S_ISREG(before.st_mode):
        with _replaced(path.resolve(), before) as output:
            yield output
        return
    if stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(f"{name} is a folder; give the name of a file to write.")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb") as file:
        yield Output(file, seekable=False)


def check_apart(source: int, output: Output) -> None:
    """Refuse an output that is added to the file being read, which would never come to its end.

    A file that is replaced is another one until all is read.

    Args:
        source: the descriptor of the input.
        output: where answers go.

    Raises:
        ValueError: where both are one regular file.
    """
    if output.seekable:
        return
    try:
        target = os.fstat(output.file.fileno())
    except io.UnsupportedOperation:  # no descriptor stands behind it, so no file does
        return
    if stat.S_ISREG(target.st_mode) and os.path.samestat(os.fstat(source), target):
        raise ValueError(
            "The input is the file that answers are written to, so its end would never be reached; "
            "name it with --output, which replaces it once all is read, or write elsewhere."
        )


def _own_descriptor(path: Path) -> int | None:
    """Return the number of an open descriptor of this process that a path stands for."""
    own = re.compile(rf"/proc/{os.getpid()}(?:/task/\d+)?/fd/(\d+)")
    for _ in range(_MOST_LINKS):
        path = path.parent.resolve() / path.name
        match = own.fullmatch(str(path))
        if match is not None:
            return int(match[1])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _duplicate(descriptor: int, name: str) -> int:
    try:
        return os.dup(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextmanager
def _replaced(path: Path, before: os.stat_result | None) -> Iterator[Output]:
    """Write a file beside its place, and put it there once it is complete.

    Args:
        path: the file, without symbolic links.
        before: the status of the former file; None where there is none.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; make it first to write {path}.")
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} may not be written to; change its mode or name another.")
    temporary = path.with_name(f".fastbert-{uuid.uuid4().hex[:12]}.part")
    # A former file may be secret; a new one gets what the umask leaves.
    mode = 0o666 if before is None else 0o600
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise PermissionError(
            f"Nothing can be written into {path.parent} ({error.strerror}), where {path.name} is "
            "first written beside its place; name an output elsewhere."
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            output = Output(file, seekable=True)
            yield output
            file.flush()
            alike = before is None or _take_over(descriptor, before)
            os.fsync(descriptor)
        if not output.discarded:
            _put_in_place(temporary, path, alike)
    finally:
        temporary.unlink(missing_ok=True)


def _take_over(descriptor: int, before: os.stat_result) -> bool:
    """Give a file the owner and mode of a former one.

    Returns:
        False where the new file cannot stand for the former one: its owner may not be given, or it
        has several names, of which renaming would replace one.
    """
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except PermissionError:
        return False
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
    return before.st_nlink == 1


def _put_in_place(temporary: Path, path: Path, alike: bool) -> None:
    if not alike:
        with temporary.open("rb") as source, path.open("r+b") as target:
            shutil.copyfileobj(source, target)
            target.truncate()
            target.flush()
            os.fsync(target.fileno())
        return
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
