"""Images of all kinds as arrays: (height, width, 3)."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[Any]
_LAYOUTS = ("channels_first", "channels_last")
_CHANNELS = (1, 3, 4)
_KINDS = "one of Pillow, the path of one, or an array of pixels"


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
    """Open an image, turn it upright, as its camera says it was held, and make it of three colours.

    What is transparent keeps the colours that stand behind it in the file, as transformers has it.

    Args:
        image: a path, the text of an image in base 64 with or without "data:image/...;base64," in
            front, or an image of Pillow.

    Returns:
        An image of Pillow, RGB.

    Raises:
        FileNotFoundError: for a path that does not exist.
        TypeError: for anything else.
        ValueError: for an address of the web, or a file that is no image.
    """
    pil = pillow()
    if isinstance(image, pil.Image.Image):
        return _upright(image)
    if not isinstance(image, (str, os.PathLike)):
        raise _no_image(image)
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        raise ValueError(
            f"fastbert fetches no images: download {image[:60]!r} and pass its path, or the image."
        )
    shown = repr(str(image)[:200])
    try:
        with pil.Image.open(_source(image)) as file:
            return _upright(file)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, pil.Image.DecompressionBombError) as error:
        raise ValueError(f"{shown} is no image that Pillow reads: {error}.") from error


def _upright(image: Any) -> Any:
    """Return an image as `opened` does."""
    found = pillow().ImageOps.exif_transpose(image).convert("RGB")
    # The colour that was transparent before; from here on it is a colour like others.
    found.info.pop("transparency", None)
    return found


def _source(image: str | os.PathLike[str]) -> Path | io.BytesIO:
    """Return the file of a path, or the bytes that a text holds.

    Raises:
        FileNotFoundError: for neither.
    """
    text = os.fspath(image)
    if not text.startswith("data:"):
        try:
            if Path(text).is_file():
                return Path(text)
        except (OSError, ValueError):  # longer than a path may be, or with a null in it
            pass
    try:
        found = base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True)
    except (binascii.Error, ValueError):
        found = b""
    # A path that does not exist may be letters and strokes alone; no image is as short as one.
    if not text.startswith("data:") and len(found) < 48:
        raise FileNotFoundError(f"There is no image {text[:200]!r}.")
    return io.BytesIO(found)


def _no_image(value: Any) -> TypeError:
    return TypeError(f"An image is {_KINDS}, not a {type(value).__name__}.")


def is_image(value: Any) -> bool:
    """Return whether a value is one image, rather than a list of them."""
    if isinstance(value, (str, os.PathLike)):
        return True
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim < 4
    return isinstance(value, pillow().Image.Image)


def listed(images: Any) -> list[Any]:
    """Return the images of one, of several, or of several lists or arrays of them, in one list.

    What can hold no images is taken for one, so that `as_pixels` says what it is.
    """
    single = (bytes, bytearray, Mapping, io.IOBase)
    if is_image(images) or isinstance(images, single) or not isinstance(images, Iterable):
        return [images]
    found: list[Any] = []
    nests = isinstance(images, (list, tuple))
    for one in images:
        several = isinstance(one, (list, tuple)) or (nests and getattr(one, "ndim", 0) == 4)
        found += listed(one) if several else [one]
    return found


def as_pixels(image: Any, layout: str | None = None) -> Pixels:
    """Return the red, green and blue of an image.

    Args:
        image: an image of Pillow, what of it is transparent on white; what `opened` opens; or an
            array or tensor of numbers: (height, width), or with 1, 3 or 4 channels in front or at
            the end, the fourth of which says how opaque the others are on white.
        layout: "channels_first" or "channels_last"; None to go by the shape.

    Returns:
        (height, width, 3), uint8 or the array's own dtype.

    Raises:
        TypeError: for anything else.
        ValueError: for an array of another shape, or numbers that are no pixels.
    """
    pil = pillow()
    if layout not in (None, *_LAYOUTS):
        raise ValueError(f"input_data_format is one of {', '.join(_LAYOUTS)}, not {layout!r}.")
    if isinstance(image, (str, os.PathLike)):
        image = opened(image)
    if isinstance(image, (np.ndarray, Tensor)):
        return _of_three(_channels_last(_array(image), layout))
    if not isinstance(image, pil.Image.Image):
        raise _no_image(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = pil.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = pil.Image.alpha_composite(white, image)
    if 0 in image.size:
        raise ValueError(f"This image of {image.size[0]} x {image.size[1]} pixels has none.")
    return np.array(image.convert("RGB"))


def _array(image: Pixels | Tensor) -> Pixels:
    """Return numbers as NumPy has them.

    Raises:
        ValueError: for what are none.
    """
    if isinstance(image, Tensor):
        known = image.float() if image.dtype == torch.bfloat16 else image
        image = known.detach().cpu().numpy()
    if image.dtype.kind not in "iuf":
        raise ValueError(
            "Arrays of pixels hold whole numbers from 0 to 255 or fractions from 0 to 1, but this "
            f"one is {image.dtype}."
        )
    return image


def _channels_last(array: Pixels, layout: str | None) -> Pixels:
    """Return an array as (height, width, channels).

    Raises:
        ValueError: for another shape, or one that does not tell.
    """
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
    return array


def _of_three(array: Pixels) -> Pixels:
    """Return an array of 1, 3 or 4 channels with three.

    Raises:
        ValueError: for fractions beside an opacity that are not from 0 to 1.
    """
    channels = array.shape[2]
    if channels == 3:
        return array
    if channels == 1:
        return np.repeat(array, 3, axis=2)
    whole = np.issubdtype(array.dtype, np.integer)
    white = 255 if whole else 1.0
    if not (array.min() >= 0 and array.max() <= white):
        raise ValueError(
            f"Pixels beside an opacity are from 0 to {white}, but these are from {array.min()} to "
            f"{array.max()}."
        )
    opacity = array[..., 3:] / white
    on_white = opacity * array[..., :3] + (1 - opacity) * white
    return np.round(on_white).astype(array.dtype) if whole else on_white.astype(array.dtype)
