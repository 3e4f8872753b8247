"""Progress on standard error, drawn by tqdm."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """Count items as they are done, and draw the count.

    Args:
        total: number of items, None when it is not known beforehand.
        unit: what the items are called.
        shown: whether to draw; None for only where the stream is a terminal.
        stream: where to draw; standard error by default.
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "texts",
        shown: bool | None = True,
        stream: TextIO | None = None,
    ) -> None:
        stream = stream or sys.stderr
        if shown is None:
            shown = stream.isatty()
        # Most calls of an encoder draw nothing; those do not import tqdm either.
        self._bar = _bar(total, unit, stream) if shown else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int) -> None:
        """Count `count` more items as done."""
        if self._bar is not None:
            self._bar.update(count)


def _bar(total: int | None, unit: str, stream: TextIO) -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """A bar that needs no thread to watch it, since miniters stays 1."""

        monitor_interval = 0

    return Bar(total=total, unit=f" {unit}", file=stream, miniters=1)
