"""Savers that are killed before one of their file operations, in a forked process."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"}


@pytest.fixture(name="tmp_path")
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """Give a folder in memory, where there is one: these tests sync thousands of files."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def hidden(folder: Path) -> list[str]:
    """List what saves leave for themselves."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def in_a_child(work: Callable[[], None]) -> int:
    """Run a function in a forked process and return how it ended: 0, or minus a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(number: int, folder: Path, work: Callable[[], None]) -> bool:
    """Kill a function before its n-th operation on files of a folder; whether it got that far."""

    def counted() -> None:
        left = [number]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event in _EVENTS or (event == "open" and arguments[2] & os.O_ACCMODE)
            if writes and str(folder) in str(arguments[0]):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    code = in_a_child(counted)
    assert code in (0, -signal.SIGKILL)
    return code != 0
