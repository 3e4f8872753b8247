"""Cutting a stream of texts into the batches of one pass each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")

# Tokens of one pass. Packed hidden states cost what their tokens cost, so texts of any length may
# share one. A GPU computes so many in the time that the host needs to launch a pass of a small
# model, and would stand idle between such passes.
MAX_TOKENS = 4096
MAX_TOKENS_GPU = 65536


def tokens_of_a_pass(device: torch.device) -> int:
    """Return at most how many tokens a pass on a device computes, where nobody said."""
    return MAX_TOKENS if device.type == "cpu" else MAX_TOKENS_GPU


def batches(
    items: Iterable[ItemT],
    length: Callable[[ItemT], int],
    batch_size: int | None,
    max_tokens: int,
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
