"""A sentencepiece vocabulary as a PieceModel, used by sentencepiece itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fastbert.tokenizers.engines.encoding import Span
from fastbert.tokenizers.engines.python import Pieces
from fastbert.tokenizers.sentencepiece import model_file


class SpmModel:
    """A PieceModel of sentencepiece.

    Args:
        path: the `.model` file.
        offset: the id of sentencepiece's piece 0; its other ids are shifted by as much.
        unk_id: with an offset, the id of the unknown piece.
        processor_options: for `SentencePieceProcessor` (enable_sampling, nbest_size, alpha:
            subword regularisation).

    Attributes:
        proto: the bytes of the file.
        processor: the SentencePieceProcessor.
        size: the size of the base vocabulary.

    Raises:
        FileNotFoundError: where there is no such file.
        TypeError: for unknown processor_options.
        ValueError: for a file that is no sentencepiece model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        offset: int = 0,
        unk_id: int | None = None,
        processor_options: dict[str, Any] | None = None,
    ) -> None:
        self.proto = model_file.read_bytes(path)
        self.offset = offset
        self._unk_id = unk_id
        self._options = dict(processor_options or {})
        try:
            self._load()
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            if isinstance(error, TypeError) and self._options:
                raise TypeError(
                    f"sp_model_kwargs {self._options} are not what SentencePieceProcessor takes "
                    f"({error})."
                ) from error
            raise model_file.broken(path, error) from error

    def _load(self) -> None:
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(**self._options)
        self.processor.LoadFromSerializedProto(self.proto)
        self.size = self.processor.GetPieceSize()
        if not self.size:
            raise ValueError("it holds no pieces")
        # Newer releases give offsets as plain lists, older ones as a message object.
        self._plain = hasattr(self.processor, "EncodeAsOffsetMapping")

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "processor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def vocab(self) -> dict[str, int]:
        """Return the id of every piece."""
        first = 1 if self.offset else 0
        piece = self.processor.IdToPiece
        return {piece(i): i + self.offset for i in range(first, self.size)}

    def to_id(self, piece: str) -> int:
        """Return the id of a piece, or the unknown piece's."""
        index = self.processor.PieceToId(piece)
        if self.offset and index == 0:
            return self._unk_id if self._unk_id is not None else self.offset
        return index + self.offset

    def to_piece(self, index: int) -> str | None:
        """Return the piece of an id, None where there is none."""
        inner = index - self.offset
        return self.processor.IdToPiece(inner) if 0 <= inner < self.size else None

    def pieces(self, text: str) -> Pieces:
        """Cut a stretch of text that holds no added tokens."""
        tokens: list[str]
        if self._options.get("enable_sampling"):
            # A second run would cut differently, so the spans are taken now.
            mapped = self._mapped(text)
            tokens = [token for token, _, _ in mapped]
        else:
            mapped = []
            tokens = self.processor.EncodeAsPieces(text)
        words: list[int] = []
        word = -1
        for token in tokens:
            word += token[0] == "▁" or word < 0
            words.append(word)

        def spans() -> list[Span]:
            found: list[Span] = []
            for token, start, end in mapped or self._mapped(text):
                if token[0] == "▁":
                    # A run of spaces before a word is one "▁": keep the last of them.
                    while start + 1 < end and text[start].isspace() and text[start + 1].isspace():
                        start += 1
                found.append((start, end))
            return found

        return Pieces(tokens, words, spans)

    def _mapped(self, text: str) -> list[tuple[str, int, int]]:
        if self._plain:
            mapped = self.processor.EncodeAsOffsetMapping(text)
            return [
                (piece, start, end)
                for piece, (start, end) in zip(mapped["pieces"], mapped["offsets"], strict=True)
            ]
        old: Any = self.processor  # releases whose types know this result
        encoded = old.encode(text, out_type="immutable_proto")
        return [(piece.piece, piece.begin, piece.end) for piece in encoded.pieces]

    def join(self, tokens: Sequence[str], specials: set[str]) -> str:
        """Join pieces to text."""
        return self.decode(tokens)

    def decode(self, tokens: Sequence[str]) -> str:
        """Join pieces to text as sentencepiece does."""
        return self.processor.DecodePieces(list(tokens)) if tokens else ""
