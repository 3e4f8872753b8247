"""Numbers of threads, as people give them on a command line."""

from __future__ import annotations

import argparse
import os

# Every thread takes a stack, and the runtime of OpenMP ends the process where it gets no more.
_ALWAYS, _PER_CPU = 256, 4


def thread_count(text: str) -> int:
    """Read a number of threads.

    Raises:
        argparse.ArgumentTypeError: for anything but a whole number from 1 to 256, or to four times
            the CPUs of this machine where that is more.
    """
    most = max(_ALWAYS, _PER_CPU * (os.cpu_count() or 1))
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of threads from 1 to {most}; this machine has "
            f"{os.cpu_count()} CPUs, and more threads than these only wait for one another."
        )
    return count
