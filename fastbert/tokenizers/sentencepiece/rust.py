"""Rust tokenizers built from sentencepiece `.model` files."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tokenizers import (
    AddedToken,
    Tokenizer as RustTokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from fastbert.tokenizers.sentencepiece.model_file import (
    BPE,
    CONTROL,
    UNIGRAM,
    USER_DEFINED,
    SpmFile,
)

logger = logging.getLogger("fastbert.tokenizers")


def bpe_merges(vocab: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Find the merges that build a sentencepiece BPE vocabulary, best score first.

    A piece of score s is made of any two pieces that spell it; sentencepiece merges the pair whose
    result scores highest, so merges are ordered by that score, then by the longer left and right
    part, then as the pieces are.
    """
    known = {piece for piece, _ in vocab}
    found: list[tuple[float, int, int, str, str]] = []
    for piece, score in dict(vocab).items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in known and right in known:
                found.append((-score, -len(left), -len(right), left, right))
    found.sort(key=lambda entry: entry[:3])
    return [(left, right) for *_, left, right in found]


def build(
    source: SpmFile,
    vocab: list[tuple[str, float]],
    unk_id: int,
    steps: list[normalizers.Normalizer],
) -> RustTokenizer:
    """Build a tokenizer that marks spaces with "▁".

    Args:
        source: the model; its control and user-defined pieces become added tokens.
        vocab: pieces and scores, in the order of the ids.
        unk_id: id of the unknown piece.
        steps: the normalisation of texts.

    Raises:
        ValueError: for a model that is neither Unigram nor BPE.
    """
    if source.byte_fallback:
        logger.warning(
            "This sentencepiece model falls back to bytes for unknown characters, which the fast "
            "tokenizer does not: it gives the unknown token there. Use the tokenizer class without "
            "'Fast' for the model's own behaviour."
        )
    if source.model_type == UNIGRAM:
        backend = RustTokenizer(models.Unigram(vocab, unk_id=unk_id, byte_fallback=False))
    elif source.model_type == BPE:
        backend = RustTokenizer(
            models.BPE(
                {piece: index for index, (piece, _) in enumerate(vocab)},
                bpe_merges(vocab),
                unk_token=source.unk_piece,
                fuse_unk=True,
                byte_fallback=False,
            )
        )
    else:
        raise ValueError(
            f"The sentencepiece model is of type {source.model_type}; only Unigram (1) and BPE (2) "
            "models can be used here."
        )
    backend.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.type == CONTROL)
            for piece in source.pieces
            if piece.type in (CONTROL, USER_DEFINED)
        ]
    )
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return backend
