"""The steps from an image to a model's numbers, with the rounding of transformers' Pillow backend.

An image is (height, width, 3) until it was resized, and planes (3, height, width) after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastbert.processors.images import Pixels, pillow


def target(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Return the height and width that an image is resized to.

    Args:
        height: of the image.
        width: of the image.
        size: the two themselves, or what the image fits without changing its shape: shortest_edge,
            with longest_edge or without, or max_height and max_width.
    """
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
    short, long = sorted((height, width))
    wanted = size["shortest_edge"]
    # Kept with its fraction for the longer side, as transformers does.
    exact: float = wanted
    if long / short * wanted > size.get("longest_edge", math.inf):
        exact = size["longest_edge"] * short / long
        wanted = max(1, round(exact))
    other = max(1, int(exact * long / short))
    return (wanted, other) if height <= width else (other, wanted)


def resized(pixels: Pixels, height: int, width: int, resample: int) -> Pixels:
    """Resize by Pillow, which knows bytes alone.

    Args:
        pixels: whole numbers from 0 to 255, or fractions from 0 to 1, which are rounded down to
            255ths and are fractions again afterwards.
        height: to have.
        width: to have.
        resample: the number of Pillow's filter.

    Raises:
        ValueError: for other numbers.
    """
    fractions = are_fractions(pixels)
    whole = rescaled(pixels, 255) if fractions else pixels
    image = pillow().Image.fromarray(whole.astype(np.uint8))
    out: Pixels = np.array(image.resize((width, height), resample=resample))
    return rescaled(out, 1 / 255) if fractions else out


def are_fractions(pixels: Pixels) -> bool:
    """Return whether pixels are fractions from 0 to 1, rather than whole numbers from 0 to 255.

    Raises:
        ValueError: for neither.
    """
    if pixels.dtype == np.uint8:
        return False
    least, most = pixels.min(), pixels.max()
    if math.isfinite(least) and math.isfinite(most):
        whole = bool(np.allclose(pixels, pixels.astype(np.int64)))
        if least >= 0 and most <= (255 if whole else 1):
            return not whole
    raise ValueError(
        "Pixels are whole numbers from 0 to 255 or fractions from 0 to 1, but these are from "
        f"{least} to {most}."
    )


def cropped(planes: Pixels, height: int, width: int) -> Pixels:
    """Return the middle of planes, with zeros around it where they are smaller than that."""
    for axis, wanted in ((1, height), (2, width)):
        size = planes.shape[axis]
        if size >= wanted:
            start = (size - wanted) // 2
            planes = np.take(planes, range(start, start + wanted), axis=axis)
        else:
            before = _before(size, wanted)
            around = [(0, 0)] * 3
            around[axis] = (before, wanted - size - before)
            planes = np.pad(planes, around)
    return planes


def _before(size: int, wanted: int) -> int:
    """Return how many zeros stand before an image that is smaller than its crop.

    transformers first centres it on the larger canvas, rounding up, and then cuts by the former
    start, which was rounded down.
    """
    padding = math.ceil((wanted - size) / 2)
    start = (size - wanted) // 2 + padding
    return padding - start


def rescaled(pixels: Pixels, factor: float) -> Pixels:
    """Multiply in double precision; return float32."""
    return (pixels.astype(np.float64) * factor).astype(np.float32)


def normalized(planes: Pixels, mean: Sequence[float] | None, std: Sequence[float]) -> Pixels:
    """Take the means off planes and divide by the deviations.

    Args:
        planes: of whole numbers, which become float32, or of floating ones, which keep their dtype.
        mean: one for each channel; None for zeros.
        std: likewise.
    """
    if not np.issubdtype(planes.dtype, np.floating):
        planes = planes.astype(np.float32)
    kind: Any = planes.dtype
    if mean is not None:
        planes = planes - np.array(mean, dtype=kind)[:, None, None]
    out: Pixels = planes / np.array(std, dtype=kind)[:, None, None]
    return out
