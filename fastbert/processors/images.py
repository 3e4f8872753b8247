"""Images of all kinds as bytes: (height, width, 3), uint8."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Pixels = npt.NDArray[np.uint8]
_LAYOUTS = ("channels_first", "channels_last")
_CHANNELS = (1, 3, 4)


def pillow() -> ModuleType:
    """Import Pillow, which opens and resizes images.

    Raises:
        ImportError: where it is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ImportError(
            "Images need Pillow, which is not installed: pip install 'fastbert-kernels[vision]'."
        ) from error
    return PIL


def opened(image: Any) -> Any:
    """Open an image and turn it upright, as its camera says it was held.

    Args:
        image: a path, or an image of Pillow.

    Returns:
        An image of Pillow.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an address of the web, or a file that is no image.
    """
    pil = pillow()
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        raise ValueError(
            f"fastbert fetches no images: download {image[:60]!r} and pass its path, or the image."
        )
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"There is no image {str(path)!r}.")
        try:
            with pil.Image.open(path) as file:
                return pil.ImageOps.exif_transpose(file)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{str(path)!r} is no image that Pillow reads: {error}.") from error
    return pil.ImageOps.exif_transpose(image)


def is_image(value: Any) -> bool:
    """Return whether a value is one image, rather than a list of them."""
    if isinstance(value, (str, os.PathLike)):
        return True
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim < 4
    return isinstance(value, pillow().Image.Image)


def as_pixels(image: Any, layout: str | None = None) -> Pixels:
    """Return the red, green and blue of an image, what is transparent in it on white.

    Args:
        image: an image of Pillow, the path of one, or an array or tensor of whole numbers from 0
            to 255: (height, width), or with 1, 3 or 4 channels in front or at the end.
        layout: "channels_first" or "channels_last"; None to go by the shape.

    Returns:
        (height, width, 3).

    Raises:
        TypeError: for anything else.
        ValueError: for an array of another shape, or numbers that are no pixels.
    """
    pil = pillow()
    if isinstance(image, (str, os.PathLike)):
        image = opened(image)
    if isinstance(image, (np.ndarray, Tensor)):
        array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
        array = _bytes_of(array, layout)
        image = pil.Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    elif not isinstance(image, pil.Image.Image):
        raise TypeError(
            "An image is one of Pillow, the path of one, or an array of pixels, not a "
            f"{type(image).__name__}."
        )
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = pil.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = pil.Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _bytes_of(array: npt.NDArray[Any], layout: str | None) -> Pixels:
    """Return the pixels of an array, (height, width, channels)."""
    if layout not in (None, *_LAYOUTS):
        raise ValueError(f"input_data_format is one of {', '.join(_LAYOUTS)}, not {layout!r}.")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"Arrays of pixels hold whole numbers from 0 to 255, but this one is {array.dtype}; "
            "multiply fractions by 255 and pass them as uint8."
        )
    if array.ndim == 2:
        array = array[:, :, None]
        layout = "channels_last"
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(
            "An image has the shape (height, width), (channels, height, width) or (height, width, "
            f"channels), not {array.shape}."
        )
    if layout is None:
        fitting = [
            name
            for name, count in zip(_LAYOUTS, (array.shape[0], array.shape[2]), strict=True)
            if count in _CHANNELS
        ]
        if len(fitting) != 1:
            raise ValueError(
                f"An image of the shape {array.shape} does not tell where its 1, 3 or 4 channels "
                "are; pass input_data_format='channels_first' or 'channels_last'."
            )
        layout = fitting[0]
    if layout == "channels_first":
        array = np.moveaxis(array, 0, -1)
    if array.shape[2] not in _CHANNELS:
        raise ValueError(f"An image has 1, 3 or 4 channels, not {array.shape[2]}.")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise ValueError(
            f"Pixels are from 0 to 255, but these are from {array.min()} to {array.max()}."
        )
    return np.ascontiguousarray(array, dtype=np.uint8)
