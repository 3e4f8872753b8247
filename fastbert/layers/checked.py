"""Checks of what callers give, in the words of the arguments."""

from __future__ import annotations

import operator
from typing import Any


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Return a whole number, of whatever class.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that means something; None for any.

    Raises:
        TypeError: for what is no whole number, True and False included.
        ValueError: for one that is too small.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r}.")
    number = operator.index(value)
    if least is not None and number < least:
        raise ValueError(f"{name} must be a number from {least} on, not {value!r}.")
    return number
