"""The encoding of one text or pair, which both engines return.

`tokenizers.Encoding` (Rust) satisfies the protocol as it is; `PieceEncoding` is the form in Python
for the algorithms that `tokenizers` cannot express.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

Span = tuple[int, int]


class Encoding(Protocol):
    """Token ids of one row, with everything known about where each token came from."""

    @property
    def ids(self) -> list[int]:
        """The ids of the tokens."""
        ...

    @property
    def type_ids(self) -> list[int]:
        """The token types."""
        ...

    @property
    def attention_mask(self) -> list[int]:
        """1 for every token, 0 for padding."""
        ...

    @property
    def special_tokens_mask(self) -> list[int]:
        """1 for special tokens and padding, 0 for tokens of a text."""
        ...

    @property
    def tokens(self) -> list[str]:
        """The tokens as strings."""
        ...

    @property
    def offsets(self) -> list[Span]:
        """The characters of every token; (0, 0) for special tokens and padding."""
        ...

    @property
    def word_ids(self) -> list[int | None]:
        """The word of every token, None for special tokens and padding."""
        ...

    @property
    def sequence_ids(self) -> list[int | None]:
        """The text (0 or 1) of every token, None for special tokens and padding."""
        ...

    @property
    def overflowing(self) -> Sequence[Encoding]:
        """The rows of what truncation cut off."""
        ...

    @property
    def n_sequences(self) -> int:
        """1 for a single text, 2 for a pair."""
        ...

    def token_to_sequence(self, token_index: int) -> int | None:
        """Return the text (0 or 1) of a token, None for a special token."""
        ...

    def token_to_word(self, token_index: int) -> int | None:
        """Return the word of a token, None for a special token."""
        ...

    def token_to_chars(self, token_index: int) -> Span | None:
        """Return the characters of a token, None for a special token."""
        ...

    def word_to_tokens(self, word_index: int, sequence_index: int = 0) -> Span | None:
        """Return the tokens of a word, None where there are none."""
        ...

    def word_to_chars(self, word_index: int, sequence_index: int = 0) -> Span | None:
        """Return the characters of a word, None where it has no token."""
        ...

    def char_to_token(self, char_pos: int, sequence_index: int = 0) -> int | None:
        """Return the token that holds a character, None where there is none."""
        ...

    def char_to_word(self, char_pos: int, sequence_index: int = 0) -> int | None:
        """Return the word that holds a character, None where there is none."""
        ...


class Truncation(NamedTuple):
    """How rows are truncated.

    Attributes:
        max_length: tokens of a row, special tokens included.
        strategy: "longest_first", "only_first" or "only_second".
        stride: tokens that a row and its overflow share.
        side: "right" or "left", the end that is cut off.
        overflow: whether what is cut off is wanted, as rows of its own.
    """

    max_length: int
    strategy: str
    stride: int
    side: str
    overflow: bool = True


class Padding(NamedTuple):
    """How rows are padded.

    Attributes:
        length: tokens of every row; None for those of the longest row.
        multiple: the length is rounded up to a multiple of it; None for no rounding.
        side: "right" or "left".
        token: the padding token.
        token_id: its id.
        type_id: the token type of padding.
    """

    length: int | None
    multiple: int | None
    side: str
    token: str
    token_id: int
    type_id: int


class Word(NamedTuple):
    """A token before special tokens are added, with the characters that it came from."""

    token: str
    id: int
    start: int
    end: int
    word: int


class _Index(NamedTuple):
    """The places of words and characters in a row: by text and word, by text and character."""

    offsets: list[Span]
    words: dict[tuple[int, int], Span]
    tokens: dict[tuple[int, int], int]


@dataclass
class PieceEncoding:
    """An encoding made in Python; see the protocol `Encoding`. All lists are as long as `ids`.

    Args:
        spans: makes the offsets of the row before padding, when they are first asked for:
            following every character through a normaliser can cost as much as tokenising.
    """

    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]
    special_tokens_mask: list[int]
    tokens: list[str]
    word_ids: list[int | None]
    sequence_ids: list[int | None]
    overflowing: list[PieceEncoding]
    n_sequences: int
    spans: Callable[[], list[Span]]
    _offsets: list[Span] | None = None
    _found: _Index | None = None
    _padded: dict[str, int] = field(default_factory=lambda: {"left": 0, "right": 0})

    @property
    def offsets(self) -> list[Span]:
        """The characters of every token; (0, 0) for special tokens and padding."""
        if self._offsets is None:
            self._offsets = self.spans()
        none: Span = (0, 0)
        return [none] * self._padded["left"] + self._offsets + [none] * self._padded["right"]

    def _index(self) -> _Index:
        """Return the places of words and characters, found once for all questions."""
        if self._found is None:
            self._found = _Index(self.offsets, {}, {})
            last: Span | None = None
            for token, sequence in enumerate(self.sequence_ids):
                if sequence is None:
                    last = None
                    continue
                span = self._found.offsets[token]
                # Marks that were composed all have the span of their run.
                for char in range(*span) if span != last else ():
                    self._found.tokens.setdefault((sequence, char), token)
                last = span
                word = self.word_ids[token]
                if word is not None:
                    first = self._found.words.get((sequence, word), (token, token))[0]
                    self._found.words[sequence, word] = (first, token + 1)
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        if self._offsets is None:
            self._offsets = self.spans()
        return self.__dict__ | {"spans": list, "_found": None}

    def token_to_sequence(self, token_index: int) -> int | None:
        """Return the text (0 or 1) of a token, None for a special token."""
        return self.sequence_ids[token_index] if token_index < len(self.ids) else None

    def token_to_word(self, token_index: int) -> int | None:
        """Return the word of a token, None for a special token."""
        return self.word_ids[token_index] if token_index < len(self.ids) else None

    def token_to_chars(self, token_index: int) -> Span | None:
        """Return the characters of a token, None for a special token."""
        known = token_index < len(self.ids) and self.sequence_ids[token_index] is not None
        return self._index().offsets[token_index] if known else None

    def word_to_tokens(self, word_index: int, sequence_index: int = 0) -> Span | None:
        """Return the tokens of a word, None where there are none."""
        return self._index().words.get((sequence_index, word_index))

    def word_to_chars(self, word_index: int, sequence_index: int = 0) -> Span | None:
        """Return the characters of a word, None where it has no token."""
        span = self.word_to_tokens(word_index, sequence_index)
        if span is None:
            return None
        offsets = self._index().offsets
        return offsets[span[0]][0], offsets[span[1] - 1][1]

    def char_to_token(self, char_pos: int, sequence_index: int = 0) -> int | None:
        """Return the token that holds a character, None where there is none."""
        return self._index().tokens.get((sequence_index, char_pos))

    def char_to_word(self, char_pos: int, sequence_index: int = 0) -> int | None:
        """Return the word that holds a character, None where there is none."""
        token = self.char_to_token(char_pos, sequence_index)
        return None if token is None else self.word_ids[token]

    def pad(self, length: int, padding: Padding) -> None:
        """Pad this row (not its overflow) to `length` tokens, in place."""
        missing = length - len(self.ids)
        if missing <= 0:
            return
        self._padded[padding.side] += missing
        self._found = None
        fill: list[tuple[list[Any], object]] = [
            (self.ids, padding.token_id),
            (self.type_ids, padding.type_id),
            (self.attention_mask, 0),
            (self.special_tokens_mask, 1),
            (self.tokens, padding.token),
            (self.word_ids, None),
            (self.sequence_ids, None),
        ]
        for column, value in fill:
            column[:] = (
                column + [value] * missing
                if padding.side == "right"
                else [value] * missing + column
            )
