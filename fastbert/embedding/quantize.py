"""Vectors in fewer bits: int8 and uint8 by the range of each dimension, or one bit a dimension."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, cast, get_args

import numpy as np

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
# Fewer vectors than this say little about the range of a dimension.
_ENOUGH = 100

_log = logging.getLogger("fastbert")


def ranges_of(vectors: np.ndarray, precision: Precision) -> np.ndarray | None:
    """Return the least and the greatest value of each dimension, (2, dimension), where needed.

    Args:
        vectors: float32 (texts, dimension).
        precision: what they are to be turned into; binary forms need no ranges.

    Raises:
        ValueError: for a single vector, whose values have no range.
    """
    if precision not in ("int8", "uint8"):
        return None
    if len(vectors) == 1:
        raise ValueError(
            f"precision={precision!r} takes the range of each dimension from the vectors of one "
            "call, and a single vector has none; encode more texts at once, or use 'binary'."
        )
    if 0 < len(vectors) < _ENOUGH:
        _log.warning(
            "precision=%r takes the range of each dimension from these %d vectors; more vectors "
            "give steadier ranges.",
            precision,
            len(vectors),
        )
    if not len(vectors):
        return np.zeros((2, vectors.shape[1]), np.float32)
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def quantize(
    vectors: np.ndarray, precision: Precision, ranges: np.ndarray | None = None
) -> np.ndarray:
    """Turn vectors into a precision, with the values that sentence-transformers gives them.

    Args:
        vectors: float32 (texts, dimension).
        precision: "int8" and "uint8" number 256 steps from the least to the greatest value of a
            dimension; "binary" and "ubinary" hold one bit for each, whether it is positive.
        ranges: (2, dimension), see `ranges_of`; None takes those of the vectors.

    Returns:
        (texts, dimension) of that dtype, or (texts, dimension / 8 rounded up) int8 or uint8.
    """
    if precision == "float32":
        return vectors
    if precision in ("binary", "ubinary"):
        packed: np.ndarray = np.packbits(vectors > 0, axis=-1)
        # The bits read as a number, less 128.
        return packed if precision == "ubinary" else (packed ^ 0x80).view(np.int8)
    if ranges is None:
        ranges = cast(np.ndarray, ranges_of(vectors, precision))
    steps = (ranges[1] - ranges[0]) / np.float32(255)
    steps = np.where(steps == 0, np.float32(1), steps)
    levels: np.ndarray = np.clip(np.floor((vectors - ranges[0]) / steps), 0, 255)
    return (
        np.asarray(levels - 128, np.int8) if precision == "int8" else np.asarray(levels, np.uint8)
    )


def quantize_all(matrices: Sequence[np.ndarray], precision: Precision) -> list[np.ndarray]:
    """Turn several matrices (rows, dimension) into a precision, with the ranges of all rows."""
    if not matrices:
        return []
    ranges = ranges_of(np.concatenate(matrices), precision)
    return [quantize(matrix, precision, ranges) for matrix in matrices]


def check_precision(precision: str | None) -> Precision:
    """Return a precision; None is "float32".

    Raises:
        ValueError: for one that does not exist.
    """
    if precision is None:
        return "float32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}.")
    return cast(Precision, precision)
