"""Truncation of long texts in Rust without the rows of what is cut off.

The library always makes those rows: for one text as many tokens again, for a pair a row of every
part of the one with every part of the other, which is quadratic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastbert.tokenizers.engines.encoding import (
    Encoding,
    Padding,
    PieceEncoding,
    Span,
    Truncation,
)
from fastbert.tokenizers.engines.steps import Slot
from fastbert.tokenizers.engines.stretch import Cut, assemble, constant
from fastbert.tokenizers.engines.windows import padded_length

# Texts with fewer characters than this for each token of the limit are left to the library: they
# have a few rows at most.
CHARACTERS_A_TOKEN = 16


def long_inputs(inputs: Sequence[Any], is_split: bool, cut: Truncation | None) -> list[int]:
    """Return which inputs are so long that their overflow must not be made.

    Args:
        inputs: texts, or (text, pair) tuples; where `is_split`, lists of words stand for texts.
        is_split: whether texts are given as lists of words.
        cut: how to truncate; None for not at all.
    """
    if cut is None or cut.overflow:
        return []
    limit = CHARACTERS_A_TOKEN * cut.max_length
    return [index for index, one in enumerate(inputs) if _size(one, is_split) > limit]


def _size(given: Any, is_split: bool) -> int:
    """Return the number of characters of an input."""
    texts = given if isinstance(given, tuple) else (given,)
    return sum(sum(map(len, text)) if is_split else len(text) for text in texts)


def row(
    whole: Sequence[Any], slots: Sequence[Slot], cut: Truncation, add_special_tokens: bool
) -> PieceEncoding | None:
    """Make the row that truncation leaves.

    Args:
        whole: the library's encoding of each text, without special tokens; cut in place.
        slots: where special tokens go.
        cut: how to truncate.
        add_special_tokens: whether special tokens are put around the texts.

    Returns:
        The row, or None where the truncation is not possible.
    """
    if not add_special_tokens:
        slots = [slot for slot in slots if slot.sequence is not None]
    room = cut.max_length - sum(len(slot.ids) for slot in slots)
    kept = _kept([len(one.ids) for one in whole], room, cut.strategy)
    if kept is None:
        return None
    cuts = []
    for one, keep in zip(whole, kept, strict=True):
        one.truncate(keep, direction=cut.side)
        part = Cut()
        words = [-1 if word is None else word for word in one.word_ids]
        part.add(one.tokens, one.ids, words, constant(one.offsets))
        cuts.append(part)
    window: list[Span] = [(0, len(part.ids)) for part in cuts]
    return assemble(cuts, window, slots)


def _kept(lengths: list[int], room: int, strategy: str) -> list[int] | None:
    """Return how many tokens of each text the library keeps, None where it would refuse."""
    remove = sum(lengths) - room
    if room < 0:
        return None
    if remove <= 0:
        return lengths
    if strategy == "longest_first":
        if len(lengths) == 1:
            return [room]
        short, long = sorted(lengths)
        long = short if short > room else max(short, room - short)
        if short + long > room:
            short, long = room // 2, room - room // 2
        return [short, long] if lengths[0] <= lengths[1] else [long, short]
    target = 0 if strategy == "only_first" else 1
    if target >= len(lengths) or lengths[target] <= remove:
        return None
    return [n - remove * (i == target) for i, n in enumerate(lengths)]


def pad(rows: Iterable[Encoding], padding: Padding) -> None:
    """Pad rows of either kind, in place, as the library pads a batch."""
    rows = list(rows)
    length = padded_length(rows, padding)
    for one in rows:
        if isinstance(one, PieceEncoding):
            one.pad(length, padding)
            continue
        library: Any = one
        library.pad(
            length,
            direction=padding.side,
            pad_id=padding.token_id,
            pad_type_id=padding.type_id,
            pad_token=padding.token,
        )
