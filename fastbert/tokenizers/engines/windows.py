"""Truncation and padding of rows made in Python."""

from __future__ import annotations

from collections.abc import Sequence

from fastbert.tokenizers.engines.encoding import (
    Encoding,
    Padding,
    PieceEncoding,
    Span,
    Truncation,
)


def longest_first(first: int, second: int, remove: int) -> tuple[int, int]:
    """Return how many tokens a first and a second text lose, so that `remove` go in all.

    The longer one loses its surplus, then both lose alike, the second one more where the rest is
    odd.
    """
    surplus = min(abs(first - second), remove)
    rest = remove - surplus
    if first > second:
        return surplus + rest // 2, rest - rest // 2
    return rest // 2, surplus + rest - rest // 2


def first_window(length: int, keep: int, side: str) -> Span:
    """Return the `keep` tokens of `length` that stay when the end at `side` is cut off."""
    return (0, min(keep, length)) if side == "right" else (max(length - keep, 0), length)


def _ranges(length: int, keep: int, stride: int, side: str) -> list[Span]:
    """Lay windows of `keep` tokens over `length`, each sharing `stride` with the one before.

    The first window is the row itself, at the side that is kept.
    """
    if length <= keep:
        return [(0, length)]
    if keep == 0:
        return [(0, 0), (0, length)]
    if stride >= keep:
        raise ValueError(
            f"stride is {stride}, but truncation leaves this text {keep} tokens in a row; the "
            "stride must be smaller, or max_length larger."
        )
    found: list[Span] = []
    if side == "right":
        for start in range(0, length, keep - stride):
            found.append((start, min(start + keep, length)))
            if found[-1][1] == length:
                break
    else:
        for end in range(length, 0, stride - keep):
            found.append((max(end - keep, 0), end))
            if found[-1][0] == 0:
                break
    return found


def windows(lengths: Sequence[int], cut: Truncation | None, specials: int) -> list[list[Span]]:
    """Choose the tokens of one or two texts that each row holds.

    Args:
        lengths: tokens of each text.
        cut: how to truncate; None for not at all.
        specials: how many special tokens a row also holds.

    Returns:
        For the row itself, then for every row of its overflow (where that is wanted), a span of
        each text's tokens.

    Raises:
        ValueError: where the strategy names a text that is not there or not long enough.
    """
    whole = [(0, length) for length in lengths]
    if cut is None:
        return [whole]
    remove = sum(lengths) + specials - cut.max_length
    if remove <= 0:
        return [whole]
    if cut.strategy == "longest_first":
        if len(lengths) == 1:
            removed = [remove]
        else:
            removed = list(longest_first(lengths[0], lengths[1], remove))
    else:
        target = 0 if cut.strategy == "only_first" else 1
        if target >= len(lengths):
            raise ValueError("truncation='only_second' needs a second text, and there is none.")
        if lengths[target] <= remove:
            raise ValueError(
                f"truncation='{cut.strategy}' would have to take {remove} tokens from a text of "
                f"{lengths[target]}; use 'longest_first', or a larger max_length."
            )
        removed = [remove if i == target else 0 for i in range(len(lengths))]
    kept = [length - gone for length, gone in zip(lengths, removed, strict=True)]
    if not cut.overflow:
        return [[first_window(n, keep, cut.side) for n, keep in zip(lengths, kept, strict=True)]]
    spans = [
        _ranges(length, keep, cut.stride, cut.side)
        for length, keep in zip(lengths, kept, strict=True)
    ]
    if len(spans) == 1:
        return [[span] for span in spans[0]]
    firsts, seconds = spans
    rows = [[firsts[0], seconds[0]]]
    for first in firsts[1:]:
        rows += [[first, second] for second in seconds]
    return rows + [[firsts[0], second] for second in seconds[1:]]


def padded_length(rows: Sequence[Encoding], padding: Padding) -> int:
    """Return the tokens that every row has after padding."""
    length = padding.length
    if length is None:
        length = max((len(row.ids) for row in rows), default=0)
    if padding.multiple:
        length = -(-length // padding.multiple) * padding.multiple
    return length


def pad_all(rows: Sequence[PieceEncoding], padding: Padding) -> None:
    """Pad rows and their overflow, in place, to `padding.length` or to the longest row."""
    length = padded_length(rows, padding)
    for row in rows:
        for one in (row, *row.overflowing):
            one.pad(length, padding)
