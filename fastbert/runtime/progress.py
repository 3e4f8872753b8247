"""A progress line on standard error, without a dependency."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_WIDTH = 28
_REDRAW_SECONDS = 0.1


class Progress:
    """Counts items and redraws one line; draws nothing when not `shown`.

    Args:
        total: number of items, None when it is not known beforehand.
        unit: what the items are called.
        shown: whether to draw at all.
        stream: where to draw; standard error by default.
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "texts",
        shown: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._total = total
        self._unit = unit
        self._stream = (stream or sys.stderr) if shown else None
        self._done = 0
        self._start = time.monotonic()
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._draw()
            self._stream.write("\n")
            self._stream.flush()

    def advance(self, count: int) -> None:
        """Counts `count` more items as done."""
        self._done += count
        if time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self._draw()

    def line(self) -> str:
        """The line as it would be drawn now."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = f"{self._done / seconds:,.0f} {self._unit}/s"
        if self._total is None:
            return f"{self._done:,} {self._unit}  {rate}"
        share = self._done / self._total if self._total else 1.0
        filled = round(share * _WIDTH)
        bar = "#" * filled + "." * (_WIDTH - filled)
        return f"{share:4.0%} [{bar}] {self._done:,}/{self._total:,}  {rate}"

    def _draw(self) -> None:
        if self._stream is None:
            return
        self._drawn = time.monotonic()
        self._stream.write(f"\r{self.line()}\x1b[K")
        self._stream.flush()
