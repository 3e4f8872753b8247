"""Spans of a context and their probabilities, over windows that may overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fastbert.tokenizers.batch_encoding import BatchEncoding

# Logits of tokens where no answer can begin or end, as transformers sets them.
_FORBIDDEN = -10000.0

Mask = NDArray[np.bool_]
Values = NDArray[np.floating]


class Windows:
    """The windows over one context.

    Args:
        encoded: question and context, one window a row.
        side: which of the two texts the context is, 0 or 1.
        cls_token_id: the token that stands for no answer; None for none.
    """

    def __init__(self, encoded: BatchEncoding, side: int, cls_token_id: int | None) -> None:
        self._encoded = encoded
        self._side = side
        self._cls_token_id = cls_token_id
        self._words = self._all_words()

    def context(self, row: int) -> Mask:
        """Mark the tokens of the context in a window."""
        return np.array([text == self._side for text in self._encoded.sequence_ids(row)])

    def nothing(self, row: int) -> Mask:
        """Mark the tokens of a window that stand for no answer.

        That is CLS; FlauBERT has the same token between its texts, where no answer may be either.
        """
        removed: Mask = np.array(self._encoded["input_ids"][row]) == self._cls_token_id
        return removed

    def characters(self, row: int, begin: int, end: int, by_word: bool) -> tuple[int, int]:
        """Return the characters from token `begin` to `end` of a row, widened to whole words."""
        offsets: Sequence[tuple[int, int]] = self._encoded["offset_mapping"][row]
        words = self._encoded.word_ids(row)
        first, last = words[begin], words[end]
        start, stop = int(offsets[begin][0]), int(offsets[end][1])
        if by_word and first is not None:
            start = self._words[first][0]
        if by_word and last is not None:
            stop = self._words[last][1]
        return start, stop

    def _all_words(self) -> dict[int, tuple[int, int]]:
        """Return the characters of every word; a window's edge may cut through one."""
        found: dict[int, tuple[int, int]] = {}
        for row, offsets in enumerate(self._encoded["offset_mapping"]):
            words, texts = self._encoded.word_ids(row), self._encoded.sequence_ids(row)
            for word, text, (start, end) in zip(words, texts, offsets, strict=True):
                if word is not None and text == self._side:
                    known = found.get(word, (start, end))
                    found[word] = min(int(start), known[0]), max(int(end), known[1])
        return found


class Spans:
    """The answers that were found in the windows over one context.

    Args:
        context: the text.
        windows: the windows over it.
        by_word: whether answers begin and end with whole words.

    Attributes:
        context: the text.
        nothing: the probability of no answer, the lowest of all windows; 1 for a context without
            tokens.
    """

    def __init__(self, context: str, windows: Windows, by_word: bool) -> None:
        self.context = context
        self.nothing = 1.0
        self._windows = windows
        self._by_word = by_word
        self._best: dict[str, tuple[float, int, int]] = {}

    def add(self, row: int, starts: Values, ends: Values, top_k: int, longest: int) -> None:
        """Add what one window says.

        Args:
            row: the window.
            starts: float32 (tokens,), logits of the first token of an answer.
            ends: float32 (tokens,), logits of its last one.
            top_k: how many answers are wanted in the end.
            longest: most tokens of an answer.
        """
        context = self._windows.context(row)
        if not context.any():
            return
        allowed = context | self._windows.nothing(row)
        first, last = _probabilities(starts, allowed), _probabilities(ends, allowed)
        self.nothing = min(self.nothing, float(first[0] * last[0]))
        first[~context] = last[~context] = 0.0
        # Several spans may widen to the same words.
        pool = top_k * 2 + 10 if self._by_word else top_k
        here: dict[str, tuple[float, int, int]] = {}
        for begin, end, score in best_spans(first, last, pool, longest):
            start, stop = self._windows.characters(row, begin, end, self._by_word)
            text = self.context[start:stop].lower()
            known = here.get(text, (0.0, start, stop))
            here[text] = (known[0] + score, known[1], known[2])
        for text, span in here.items():
            if span[0] > self._best.get(text, (0.0,))[0]:
                self._best[text] = span

    def found(self) -> Iterator[tuple[float, int, int]]:
        """Give (score, start, end) of every answer; scores are at most 1."""
        for score, start, end in self._best.values():
            yield min(score, 1.0), start, end


def _probabilities(logits: Values, allowed: Mask) -> NDArray[np.float64]:
    masked = np.where(allowed, logits, _FORBIDDEN).astype(np.float64)
    exponents = np.exp(masked - masked.max())
    return np.asarray(exponents / exponents.sum())


def best_spans(
    first: Values, last: Values, count: int, longest: int
) -> Iterator[tuple[int, int, float]]:
    """Give the best spans that are at most `longest` tokens long.

    Args:
        first: (tokens,), probabilities of the first token.
        last: (tokens,), probabilities of the last one.
        count: at most so many.
        longest: most tokens of a span.

    Yields:
        (begin, end, score), end included, the best first.
    """
    scores = np.tril(np.triu(np.outer(first, last)), longest - 1)
    flat = scores.ravel()
    best = np.argsort(-flat, kind="stable")[:count]
    begins, ends = np.unravel_index(best, scores.shape)
    for begin, end in zip(begins, ends, strict=True):
        if scores[begin, end] > 0.0:
            yield int(begin), int(end), float(scores[begin, end])
