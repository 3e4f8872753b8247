"""Locks that no forked child finds locked.

A child of os.fork() has a single thread, the one that forked. What another thread held at that
moment would stay locked in the child for ever: a lock of Python's, and also one within a library,
such as that of the tokenizer at work. So a fork waits until all these locks are free.
"""

from __future__ import annotations

# Registers its own handlers for forks. The last to come is asked first: a thread within one of our
# locks may want one of its, never the other way round.
import logging  # noqa: F401
import os
import threading
import weakref

_made: weakref.WeakSet[Lock] = weakref.WeakSet()
_held_by_fork: list[Lock] = []
# One fork at a time: another thread's would add to that list while it is taken apart, and two that
# take the locks in different orders would wait for each other.
_fork = threading.RLock()


class Lock:
    """A context manager that one thread at a time is in, as often as it likes.

    Within it, a thread takes no other one of these locks, and does not wait for a thread that may.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _made.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _before_fork() -> None:
    _fork.acquire()
    for lock in list(_made):
        lock.__enter__()
        _held_by_fork.append(lock)


def _after_fork() -> None:
    while _held_by_fork:
        _held_by_fork.pop().__exit__()
    _fork.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
