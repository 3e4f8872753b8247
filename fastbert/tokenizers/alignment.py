"""Alignment of a normalised text with its source, character by character."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

from fastbert.tokenizers.engines.encoding import Span

# How far to look for the position where text and tokens agree again. The longest rewriting that the
# normalisers do is three characters for one, beside runs of removed characters, which cost nothing.
_REACH = 8

_QUOTES = dict.fromkeys('«»“”„‟"', '"') | dict.fromkeys("‘’‚‛´`'", "'")
_DASHES = dict.fromkeys("–—━-", "-")
_ALIKE = _QUOTES | _DASHES


# Longer runs of combining marks are put in order before the library sees them, since its own
# ordering is quadratic in their number.
_LONG_RUN = 64


def normal(form: Literal["NFC", "NFD"], text: str) -> str:
    """Bring a text into a normal form, in time linear in its length whatever it holds."""
    if text.isascii():
        return text
    return unicodedata.normalize(form, _ordered(text))


def _ordered(text: str) -> str:
    """Decompose long runs of combining marks and put them in their canonical order."""
    parts: list[str] = []
    start = at = 0
    while at < len(text):
        if not _is_mark(text[at]):
            at += 1
            continue
        end = at + 1
        while end < len(text) and _is_mark(text[end]):
            end += 1
        if end - at > _LONG_RUN:
            marks = [mark for char in text[at:end] for mark in unicodedata.normalize("NFD", char)]
            parts += [text[start:at], *sorted(marks, key=unicodedata.combining)]
            start = end
        at = end
    return "".join([*parts, text[start:]]) if parts else text


def _is_mark(char: str) -> bool:
    """Return whether a character, decomposed, begins with a combining mark."""
    if char < "\u0300":
        return False
    if unicodedata.combining(char):
        return True
    return bool(unicodedata.combining(unicodedata.normalize("NFD", char)[0]))


def nfc(text: str) -> tuple[str, list[Span] | None]:
    """Bring a text into Unicode's normal form C.

    Returns:
        The text, and the source span of every character; None where nothing has changed.
    """
    composed = normal("NFC", text)
    if composed == text:
        return text, None
    parts: list[str] = []
    spans: list[Span] = []
    start = 0
    while start < len(text):
        end = start + 1
        while True:
            while end < len(text) and _is_mark(text[end]):
                end += 1
            part = normal("NFC", text[start:end])
            if end == len(text) or not _composes(part[-1], text[end]):
                break
            end += 1
        parts.append(part)
        spans += [(start, end)] * len(part)
        start = end
    return "".join(parts), spans


def _composes(last: str, char: str) -> bool:
    """Return whether a character that is no mark becomes one with the character before it."""
    both = unicodedata.normalize("NFC", last + char)
    return both != last + unicodedata.normalize("NFC", char)


def _alike(char: str) -> str:
    return _ALIKE.get(char, char)


def align(source: Sequence[tuple[str, Span]], words: Sequence[str]) -> list[list[Span]]:
    """Find where in a text every character of every word came from.

    Words and source spell the same characters except for local rewriting (quotation marks, dashes,
    swapped commas). The two are matched from left to right. Where they differ, the nearest position
    is taken at which they agree again, and the characters in between get the span of the source's
    characters in between. Spans never go backwards.

    Args:
        source: characters as the normaliser leaves them, without spaces and removed characters,
            each with its span in the text.
        words: the words to align.

    Returns:
        For every word the spans of its characters.
    """
    wanted = [(index, char) for index, word in enumerate(words) for char in word]
    found: list[list[Span]] = [[] for _ in words]
    at = done = 0
    while done < len(wanted):
        skip_source, skip_wanted = _gap(source, at, wanted, done)
        span = _between(source, at, at + skip_source)
        for index, _ in wanted[done : done + skip_wanted]:
            found[index].append(span)
        at += skip_source
        done += skip_wanted
        if done < len(wanted):
            found[wanted[done][0]].append(source[at][1])
            at += 1
            done += 1
    return found


def _gap(
    source: Sequence[tuple[str, Span]], at: int, wanted: Sequence[tuple[int, str]], done: int
) -> tuple[int, int]:
    """Return how many source and wanted characters to skip until the next ones agree.

    Where they never agree, that is all that is left of both.
    """
    left, right = len(source) - at, len(wanted) - done
    for total in range(min(2 * _REACH, left + right) + 1):
        for skip in range(max(0, total - right), min(total, left) + 1):
            i, j = at + skip, done + total - skip
            if i < len(source) and j < len(wanted) and _alike(source[i][0]) == _alike(wanted[j][1]):
                return skip, total - skip
    return left, right


def _between(source: Sequence[tuple[str, Span]], start: int, end: int) -> Span:
    """Return the span of source characters `start` to `end`; empty where there are none."""
    if start < end:
        return source[start][1][0], source[end - 1][1][1]
    if start < len(source):
        return source[start][1][0], source[start][1][0]
    return (source[-1][1][1], source[-1][1][1]) if source else (0, 0)
