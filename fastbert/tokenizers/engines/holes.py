"""Ids without a token: names that fill them in libraries and files that count instead."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Noncharacters, which no text holds, and a space, which no piece of a word holds.
_FILLER = re.compile("\ufdd0hole (\\d+)\ufdd1")
# A larger gap is a mistake in the file, not a table that somebody trained.
WIDEST = 100_000


def filler(index: int) -> str:
    """Return the name that stands at an id without a token."""
    return f"\ufdd0hole {index}\ufdd1"


def is_filler(token: str) -> bool:
    """Return whether a token only fills a hole."""
    return _FILLER.fullmatch(token) is not None


def fillers(ids: Iterable[int], start: int = 0, stop: int | None = None) -> dict[str, int]:
    """Return a name for every id from `start` on that is not among `ids`.

    Args:
        ids: the ids that have a token.
        start: the first id that must have a name.
        stop: the end of the range; None for the largest of `ids`.

    Raises:
        ValueError: for more than 100 000 of them.
    """
    taken = set(ids)
    end = max(taken, default=start - 1) + 1 if stop is None else stop
    if end - start - len(taken) > WIDEST:
        raise ValueError(
            f"Token ids reach up to {end - 1}, with only {len(taken)} tokens below: the ids of the "
            "tokenizer's files are damaged."
        )
    return {filler(index): index for index in range(start, end) if index not in taken}


def next_id(ids: Iterable[int]) -> int:
    """Return the id after the largest of `ids`: counting them would give an id that is taken."""
    return max(ids, default=-1) + 1
