"""Empty the processor's caches between timed calls."""

from __future__ import annotations

from pathlib import Path

import torch

_LEAST_BYTES = 64 << 20
_L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


class Flush:
    """A buffer that takes the place of everything else in the caches when it is written to.

    It is twice as large as the last-level cache, and at least 64 MiB.
    """

    def __init__(self) -> None:
        self._buffer = torch.zeros(max(_LEAST_BYTES, 2 * last_level_bytes()), dtype=torch.uint8)

    def __call__(self) -> None:
        """Write to the whole buffer.

        Each byte is read before it is written: a plain fill may store past the caches.
        """
        self._buffer.add_(1)


def last_level_bytes() -> int:
    """Return the size of the last-level cache, 0 where the system does not tell."""
    if not _L3.is_file():
        return 0
    text = _L3.read_text(encoding="ascii").strip()
    units = {"K": 1 << 10, "M": 1 << 20}
    return int(text.rstrip("KM")) * units.get(text[-1], 1)
