"""Cutting a stream of texts into the batches of one pass each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")

# Tokens of one pass. Packed hidden states cost what their tokens cost, so texts of any length may
# share one.
MAX_TOKENS = 4096


def batches(
    items: Iterable[ItemT],
    length: Callable[[ItemT], int],
    batch_size: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[list[ItemT]]:
    """Group consecutive items into batches of bounded size.

    Args:
        items: what is to be batched, in order.
        length: the number of tokens of an item.
        batch_size: at most so many items in a batch; None for any number.
        max_tokens: at most so many tokens in a batch, except that a longer item is one alone.

    Yields:
        Batches of at least one item.
    """
    batch: list[ItemT] = []
    tokens = 0
    for item in items:
        count = length(item)
        if batch and (tokens + count > max_tokens or len(batch) == batch_size):
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += count
    if batch:
        yield batch
