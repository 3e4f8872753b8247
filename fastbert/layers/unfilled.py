"""Building models whose weights come from a file: ours take no memory until they are read.

Only the layers of this package are built so. What somebody adds to a model of theirs is built as
its constructor says, and keeps that where the file has nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_place: ContextVar[torch.device | None] = ContextVar("device of new weights", default=None)


@contextmanager
def unfilled() -> Iterator[None]:
    """Have layers of this package built on the meta device within the block."""
    token = _place.set(torch.device("meta"))
    try:
        yield
    finally:
        _place.reset(token)


def weights_device() -> torch.device | None:
    """Return where a layer of this package makes its parameters; None for torch's default."""
    return _place.get()
