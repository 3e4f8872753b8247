"""Signals that end a command, as exceptions, so that what is half written is tidied up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Signals often come in pairs; the second may not end the tidying that the first began.
_TIDYING_SECONDS = 2.0


class Stopped(BaseException):
    """A signal asked this process to end.

    Attributes:
        status: the exit status that stands for it, 128 and the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped in this block at SIGTERM and SIGHUP, where they would end the process.

    Raises:
        Stopped: at a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] < _TIDYING_SECONDS:
            return
        first[:] = [time.monotonic()]
        raise Stopped(number)

    taken = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
