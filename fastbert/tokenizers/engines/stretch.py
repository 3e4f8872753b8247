"""Stretches of a text between its added tokens, and the tokens cut from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastbert.tokenizers.engines.encoding import PieceEncoding, Span
from fastbert.tokenizers.engines.steps import Slot


class Stretch:
    """A run of text that is either one added token or has none in it.

    Args:
        text: the characters.
        start: position of the first one in the original text.
        positions: position of every character in the original text; None where character i is at
            `start + i`.
    """

    __slots__ = ("positions", "start", "text")

    def __init__(self, text: str, start: int, positions: list[int] | None) -> None:
        self.text, self.start, self.positions = text, start, positions

    def lstrip(self) -> None:
        """Take away the spaces at the beginning."""
        kept = self.text.lstrip()
        cut = len(self.text) - len(kept)
        self.text, self.start = kept, self.start + cut
        self.positions = None if self.positions is None else self.positions[cut:]

    def rstrip(self) -> None:
        """Take away the spaces at the end."""
        self.text = self.text.rstrip()

    def span(self, start: int, end: int) -> Span:
        """Return where characters `start` to `end` of this stretch are in the original text."""
        if self.positions is None:
            return self.start + start, self.start + end
        if start >= end:
            return self.positions[start], self.positions[start]
        return self.positions[start], self.positions[end - 1] + 1

    def moved(self, spans: Callable[[], list[Span]]) -> Callable[[], list[Span]]:
        """Translate spans of this stretch to spans of the original text, when they are made."""
        if self.positions is None and self.start == 0:
            return spans
        return lambda: [self.span(start, end) for start, end in spans()]


class Cut:
    """One text, tokenised, as columns; its offsets are made when they are asked for."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.ids: list[int] = []
        self.words: list[int] = []
        self._parts: list[Callable[[], list[Span]]] = []
        self._spans: list[Span] | None = None

    def add(
        self,
        tokens: list[str],
        ids: list[int],
        words: list[int],
        spans: Callable[[], list[Span]],
    ) -> None:
        """Append tokens; `spans` makes their spans in the original text."""
        self.tokens += tokens
        self.ids += ids
        self.words += words
        self._parts.append(spans)

    def spans(self) -> list[Span]:
        """Return the characters of every token."""
        if self._spans is None:
            self._spans = [span for part in self._parts for span in part()]
        return self._spans


def constant(spans: list[Span]) -> Callable[[], list[Span]]:
    """Return a function that returns these spans."""
    return lambda: spans


def append(left: Stretch, right: Stretch) -> None:
    """Append `right` to `left`, in place."""
    spans = [
        list(range(part.start, part.start + len(part.text)))
        if part.positions is None
        else part.positions[: len(part.text)]
        for part in (left, right)
    ]
    left.text += right.text
    left.positions = spans[0] + spans[1]


def assemble(cuts: Sequence[Cut], window: Sequence[Span], slots: Sequence[Slot]) -> PieceEncoding:
    """Make one row: a window of each text, with special tokens around them."""

    def spans() -> list[Span]:
        found: list[Span] = []
        for slot in slots:
            if slot.sequence is None:
                found += [(0, 0)] * len(slot.ids)
            else:
                start, end = window[slot.sequence]
                found += cuts[slot.sequence].spans()[start:end]
        return found

    row = PieceEncoding([], [], [], [], [], [], [], [], len(cuts), spans)
    for slot in slots:
        if slot.sequence is None:
            count = len(slot.ids)
            row.tokens.extend(slot.tokens)
            row.ids.extend(slot.ids)
            row.word_ids.extend([None] * count)
        else:
            start, end = window[slot.sequence]
            source = cuts[slot.sequence]
            count = end - start
            row.tokens.extend(source.tokens[start:end])
            row.ids.extend(source.ids[start:end])
            row.word_ids.extend(source.words[start:end])
        row.sequence_ids.extend([slot.sequence] * count)
        row.special_tokens_mask.extend([int(slot.sequence is None)] * count)
        row.type_ids.extend([slot.type_id] * count)
        row.attention_mask.extend([1] * count)
    return row
