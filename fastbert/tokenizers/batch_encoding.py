"""The result of a tokenizer's call."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
import torch

from fastbert.tokenizers.engines.encoding import Encoding

TensorType = Literal["pt", "np"]


class TokenSpan(NamedTuple):
    """A half-open range of token positions."""

    start: int
    end: int


class CharSpan(NamedTuple):
    """A half-open range of character positions in the original text.

    For input that is split into words, positions count within the word.
    """

    start: int
    end: int


# Columns with one number per row rather than one per token.
_FLAT = ("length", "overflow_to_sample_mapping")


def as_tensor(key: str, rows: Any, tensor_type: TensorType) -> torch.Tensor | np.ndarray:
    """Turn rows into a tensor or an array.

    Args:
        key: the name of the rows in error messages.
        rows: numbers, or lists of them that are equally long.
        tensor_type: "pt" or "np".

    Returns:
        int64 or float, by the numbers.

    Raises:
        TypeError: for values that are no numbers.
        ValueError: where the rows differ in length.
    """
    if isinstance(rows, torch.Tensor):
        return rows if tensor_type == "pt" else rows.numpy()
    if isinstance(rows, list) and not rows and key not in _FLAT:
        rows = np.zeros((0, 0, 2) if key == "offset_mapping" else (0, 0), dtype=np.int64)
    try:
        # numpy reads nested lists several times faster than torch.tensor does.
        array = rows if isinstance(rows, np.ndarray) else np.array(rows)
        if array.dtype.kind not in "OUS":
            return _of_numbers(array, tensor_type)
        first = array.flat[0] if array.size else []
        if not isinstance(first, (list, tuple)):
            shown = first if first is None else str(first)
            raise TypeError(
                f"'{key}' holds {shown!r}, which cannot stand in a tensor; leave that key out, or "
                "return_tensors."
            )
        raise ValueError("ragged")
    except ValueError as error:
        raise ValueError(
            f"The rows of '{key}' differ in length, so they cannot become one tensor; pass "
            "padding=True, and truncation=True where a length limit is wanted, or leave out "
            "return_tensors."
        ) from error


def _of_numbers(array: np.ndarray, tensor_type: TensorType) -> torch.Tensor | np.ndarray:
    if array.size == 0 and array.dtype != np.int64:
        array = array.astype(np.int64)
    return torch.from_numpy(array) if tensor_type == "pt" else array


def as_tensor_type(return_tensors: object) -> TensorType | None:
    """Check the argument `return_tensors` of a call.

    Args:
        return_tensors: None, "pt" or "np", or an enum with such a value.

    Raises:
        ValueError: for anything else.
    """
    tensor_type = getattr(return_tensors, "value", return_tensors)
    if tensor_type not in (None, "pt", "np"):
        raise ValueError(
            f"return_tensors is {return_tensors!r}; it must be 'pt' (torch), 'np' (numpy) or None "
            "(lists)."
        )
    return tensor_type


class BatchEncoding(UserDict[str, Any]):
    """A dict of model inputs that also maps tokens, words and characters onto one another.

    It is passed as `model(**encoding)`. Values are lists, or int64 tensors of shape (batch, seqlen)
    after `return_tensors`. An integer index gives the row's Encoding, a slice the sliced lists.

    Args:
        data: the inputs by name.
        encoding: the encodings of the rows; None for bare values.
        tensor_type: "pt" or "np" to turn the values into tensors or arrays.
        prepend_batch_axis: whether to make a single row a batch of one, with tensor_type.
        n_sequences: 1 for single texts, 2 for pairs; None takes it from the encodings.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | Enum | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data or {})
        if encoding is not None and not isinstance(encoding, (list, tuple)):
            encoding = [encoding]  # type: ignore[list-item]
        self._encodings: list[Encoding] | None = None if encoding is None else list(encoding)
        if n_sequences is None and self._encodings:
            n_sequences = self._encodings[0].n_sequences
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None where it is not known."""
        return self._n_sequences

    @property
    def encodings(self) -> list[Encoding] | None:
        """The Encoding of every row, or None for a BatchEncoding made from bare values."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether tokens, words and characters can be mapped onto one another."""
        return self._encodings is not None

    @overload
    def __getitem__(self, item: str) -> Any: ...
    @overload
    def __getitem__(self, item: int) -> Encoding: ...
    @overload
    def __getitem__(self, item: slice) -> dict[str, Any]: ...
    def __getitem__(self, item: str | int | slice) -> Any:
        if isinstance(item, str):
            return self.data[item]
        if isinstance(item, int):
            return self._row(item)
        if isinstance(item, slice):
            return {key: values[item] for key, values in self.data.items()}
        raise KeyError(
            f"A BatchEncoding is indexed by a key, a row number or a slice, not {item!r}."
        )

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name.startswith("__"):
            raise AttributeError(name)
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(
                f"This BatchEncoding has no '{name}'; it holds {', '.join(self.data) or 'nothing'}."
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _row(self, index: int) -> Encoding:
        if self._encodings is None:
            raise ValueError(
                "This BatchEncoding holds only values: it was not made by calling a tokenizer on "
                "texts, so it does not know tokens, words or characters."
            )
        return self._encodings[index]

    def _locate(self, batch_or_index: int, index: int | None) -> tuple[Encoding, int]:
        """Return the row and the index in it; a single argument means row 0."""
        batch = 0 if index is None else batch_or_index
        position = batch_or_index if index is None else index
        return self._row(batch), position

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the token strings of a row, special tokens and padding included."""
        return self._row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the word of every token, None for special tokens and padding."""
        return self._row(batch_index).word_ids

    def words(self, batch_index: int = 0) -> list[int | None]:
        """Return the word of every token; an older name of `word_ids`."""
        return self.word_ids(batch_index)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the text of every token, 0 or 1; None for special tokens and padding."""
        return self._row(batch_index).sequence_ids

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Return the text (0, 1 or None) of a token; arguments are (token) or (row, token)."""
        row, token = self._locate(batch_or_token_index, token_index)
        return row.token_to_sequence(token % len(row.ids) if token < 0 else token)

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Return the word of a token, or None; arguments are (token) or (row, token)."""
        row, token = self._locate(batch_or_token_index, token_index)
        return row.token_to_word(token % len(row.ids) if token < 0 else token)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Return the tokens of a word, or None; arguments are (word) or (row, word)."""
        row, word = self._locate(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        return None if span is None else TokenSpan(*span)

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """Return the characters of a token, None for a special token; (token) or (row, token)."""
        row, token = self._locate(batch_or_token_index, token_index)
        span = row.token_to_chars(token % len(row.ids) if token < 0 else token)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the token that holds a character, None for a space; (char) or (row, char)."""
        row, char = self._locate(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Return the characters of a word, or None; arguments are (word) or (row, word)."""
        row, word = self._locate(batch_or_word_index, word_index)
        span = row.word_to_chars(word, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the word that holds a character, or None; arguments are (char) or (row, char)."""
        row, char = self._locate(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def convert_to_tensors(
        self, tensor_type: str | Enum | None = None, prepend_batch_axis: bool = False
    ) -> Self:
        """Turn every value into a tensor or an array, in place.

        Args:
            tensor_type: "pt", "np", or None for nothing to be done.
            prepend_batch_axis: make a single row a batch of one.

        Returns:
            The BatchEncoding itself.

        Raises:
            ValueError: for another tensor_type, or rows that differ in length.
        """
        wanted = as_tensor_type(tensor_type)
        if wanted is None:
            return self
        for key, value in self.data.items():
            self.data[key] = as_tensor(key, [value] if prepend_batch_axis else value, wanted)
        return self

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Self:
        """Move every tensor to a torch device, in place, and return the BatchEncoding itself.

        Args:
            device: the device; None to leave tensors where they are. A dtype may stand here too.
            dtype: what floating tensors, such as pixels, become; ids and masks stay as they are.
            non_blocking: see torch.Tensor.to.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for key, value in self.data.items():
            if isinstance(value, torch.Tensor):
                kind = dtype if value.is_floating_point() else None
                self.data[key] = value.to(device=device, dtype=kind, non_blocking=non_blocking)
        return self
