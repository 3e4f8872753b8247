"""The reader of sentencepiece files, against sentencepiece, and on broken input."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
import sentencepiece
import tok_corpus

from fastbert.tokenizers.sentencepiece import model_file

FILES = [
    "camembert/sentencepiece.bpe.model",
    "camembert-bpe/sentencepiece.bpe.model",
    "camembert-bytes/sentencepiece.bpe.model",
    "camembert-identity/sentencepiece.bpe.model",
    "rembert/sentencepiece.model",
]


@pytest.mark.parametrize("name", FILES)
def test_same_as_sentencepiece(name: str, models: Path) -> None:
    path = models / name
    found = model_file.read(path)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(path.read_bytes())
    assert len(found.pieces) == processor.GetPieceSize()
    for index, piece in enumerate(found.pieces):
        assert piece.text == processor.IdToPiece(index)
        assert piece.score == pytest.approx(processor.GetScore(index), abs=0)
        assert (piece.type == model_file.CONTROL) == processor.IsControl(index)
        assert (piece.type == model_file.UNKNOWN) == processor.IsUnknown(index)
        assert (piece.type == model_file.BYTE) == processor.IsByte(index)
    assert found.unk_id == processor.unk_id()
    assert found.model_type == (model_file.BPE if "-bpe" in name else model_file.UNIGRAM)
    assert found.byte_fallback == ("bytes" in name)
    assert (len(found.charsmap) == 0) == ("identity" in name)
    user = [piece.text for piece in found.pieces if piece.type == model_file.USER_DEFINED]
    assert user == (["<sym>"] if "rembert/" in name else [])


def test_broken_files_never_do_worse_than_an_error(models: Path, tmp_path: Path) -> None:
    data = (models / "camembert-identity" / "sentencepiece.bpe.model").read_bytes()
    dice = tok_corpus.Dice(5)
    path = tmp_path / "x.model"
    for _ in range(400):
        broken = bytearray(data[: dice.below(len(data))])
        for _ in range(dice.below(3)):
            if broken:
                broken[dice.below(len(broken))] = dice.below(256)
        path.write_bytes(broken)
        with contextlib.suppress(ValueError):
            model_file.read(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no pieces"),
        (b"\x0a\x05ab", "past the end"),
        (b"\x0b\x00", "wire type 3"),
        (b"\x02\x00", "number 0"),
        (b"\xff" * 12, "more than ten bytes"),
        (b"\x08\x01", "a number stands where a message belongs"),
        (b"\x12\x04\x1a\x02ab", "a message stands where a number belongs"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model_file.parse(data)
    with pytest.raises((IndexError, struct.error, ValueError)):
        model_file.parse(data + b"\x80")
