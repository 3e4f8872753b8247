"""Reading of sentencepiece `.model` files, which are protocol-buffer messages, without protobuf.

The format is that of sentencepiece_model.proto: ModelProto {1: pieces {1: string piece, 2: float
score, 3: enum type}, 2: trainer_spec {3: enum model_type, 35: bool byte_fallback, 40: int32 unk_id,
45: string unk_piece}, 3: normalizer_spec {2: bytes precompiled_charsmap}}.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fastbert.tokenizers import files

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class SpmPiece(NamedTuple):
    """One entry of the vocabulary; `type` is one of the constants above."""

    text: str
    score: float
    type: int


@dataclass
class SpmFile:
    """The parts of a `.model` file that the Rust library needs.

    Attributes:
        pieces: the vocabulary; the id of a piece is its position.
        model_type: UNIGRAM, BPE or another number.
        unk_id: id of the unknown piece.
        unk_piece: the unknown piece.
        byte_fallback: whether unknown characters become pieces of bytes.
        charsmap: the compiled rules of normalisation.
    """

    pieces: list[SpmPiece] = field(default_factory=list)
    model_type: int = UNIGRAM
    unk_id: int = 0
    unk_piece: str = "<unk>"
    byte_fallback: bool = False
    charsmap: bytes = b""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read the base-128 number at `at`; also return the position behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than ten bytes")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of every field: an int, or the raw bytes of anything longer."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field has the number 0")
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is not used by this format")
        if at + size > end:
            raise ValueError("a field reaches past the end")
        yield number, data[at : at + size]
        at += size


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where a message belongs")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a message stands where a number belongs")
    return value


def _piece(data: bytes) -> SpmPiece:
    text, score, piece_type = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _message(value).decode("utf-8")
        elif number == 2:
            score = struct.unpack("<f", _message(value))[0]
        elif number == 3:
            piece_type = _number(value)
    return SpmPiece(text, score, piece_type)


def parse(data: bytes) -> SpmFile:
    """Parse the bytes of a `.model` file.

    Raises:
        ValueError: where they are no such file; IndexError and struct.error likewise.
    """
    found = SpmFile()
    for number, value in _fields(data):
        if number == 1:
            found.pieces.append(_piece(_message(value)))
        elif number == 2:
            for inner, setting in _fields(_message(value)):
                if inner == 3:
                    found.model_type = _number(setting)
                elif inner == 35:
                    found.byte_fallback = bool(_number(setting))
                elif inner == 40:
                    found.unk_id = _number(setting)
                elif inner == 45:
                    found.unk_piece = _message(setting).decode("utf-8")
        elif number == 3:
            for inner, setting in _fields(_message(value)):
                if inner == 2:
                    found.charsmap = _message(setting)
    if not found.pieces:
        raise ValueError("it holds no pieces")
    return found


def read_bytes(path: str | os.PathLike[str] | None) -> bytes:
    """Read the bytes of a `.model` file.

    Raises:
        FileNotFoundError: where there is none.
    """
    found = files.existing_file(
        path, "sentencepiece model", "pass vocab_file= (a .model file), or use from_pretrained."
    )
    return found.read_bytes()


def broken(path: object, reason: object) -> ValueError:
    """Return the error for a file that is no sentencepiece model."""
    return ValueError(
        f"'{path}' is not a sentencepiece model ({reason}); it is broken or cut short, or another "
        "kind of file (a git-lfs pointer, say): fetch it again."
    )


def read(path: str | os.PathLike[str] | None) -> SpmFile:
    """Read a `.model` file.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is no sentencepiece model.
    """
    data = read_bytes(path)
    try:
        return parse(data)
    except (ValueError, IndexError, struct.error) as error:
        raise broken(path, error) from error
