"""Threads that a call wakes: those of this process after the ones of OpenMP were ended.

A loop that takes several starts them anew.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

PROCESS = ctypes.CDLL(None)
counting = pytest.mark.skipif(
    not hasattr(PROCESS, "omp_pause_resource_all"), reason="this torch has no OpenMP of GNU's kind"
)


def started(run: Callable[[], object]) -> int:
    """Count the threads that a call leaves behind where OpenMP had none."""
    PROCESS.omp_pause_resource_all(1)
    before = set(Path("/proc/self/task").iterdir())
    run()
    return len(set(Path("/proc/self/task").iterdir()) - before)
