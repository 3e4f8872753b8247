"""The image processor of EfficientNet, which ALIGN has too."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from fastbert.checkpoints.files import HUB_OPTIONS, resolve_file
from fastbert.checkpoints.storage import json_text, read_json, write_text
from fastbert.processors.images import Pixels, as_pixels, is_image, pillow
from fastbert.tokenizers.batch_encoding import BatchEncoding

IMAGE_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# Of how transformers computes and what it calls things; they change no number here.
_WITHOUT_MEANING = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "return_tensors"),
    *("data_format", "device", "disable_grouping", "use_fast", "backend"),
)
_TENSORS = (None, "pt", "np")
Planes = npt.NDArray[np.float32]


class EfficientNetImageProcessor:
    """Images to pixel values: resized, cropped, rescaled and normalised, each where asked for.

    Grey images and those with transparency are taken too: as red, green and blue, on white.

    Args:
        **settings: those of DEFAULTS; others are kept for the file, and warned of where they would
            mean something in transformers.

    Attributes:
        do_resize, size, resample: whether to resize to {"height", "width"}, and the number of
            Pillow's filter.
        do_center_crop, crop_size: whether to cut the middle out, or to put the image in the middle
            of zeros where it is smaller.
        do_rescale, rescale_factor, rescale_offset: whether to multiply pixels, and then take 1 off.
        do_normalize, image_mean, image_std: whether to take the mean off and divide by the
            deviation, one number or one for each channel.
        include_top: whether to divide by the deviation once more.

    Raises:
        ValueError: for a setting that is out of its range.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "do_resize": True,
        "size": {"height": 346, "width": 346},
        "resample": 3,
        "do_center_crop": False,
        "crop_size": {"height": 289, "width": 289},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "rescale_offset": False,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "include_top": True,
    }

    def __init__(self, **settings: Any) -> None:
        self._others: dict[str, Any] = {}
        for name, value in settings.items():
            if name in self.DEFAULTS:
                continue
            self._others[name] = value
            if name == "do_convert_rgb" and value is not False:
                continue
            if name not in _WITHOUT_MEANING and value not in (None, False):
                warnings.warn(
                    f"EfficientNetImageProcessor does not obey {name}={value!r}.", stacklevel=2
                )
        self._settings = _checked(
            {name: settings.get(name, default) for name, default in self.DEFAULTS.items()}
        )

    def __getattr__(self, name: str) -> Any:
        if name in type(self).DEFAULTS:
            return self._settings[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.DEFAULTS:
            self._settings = _checked({**self._settings, name: value})
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json_text(self.to_dict())}"

    # Computing

    def __call__(self, images: Any, **options: Any) -> BatchEncoding:
        """Compute what a model takes in.

        Args:
            images: one image or a list; see `fastbert.processors.images.as_pixels`. An array of
                four dimensions is several.
            **options: settings for this call; return_tensors, None for a list of arrays, "pt" or
                "np" for one tensor, which needs images that end in one size; input_data_format,
                "channels_first" or "channels_last".

        Returns:
            pixel_values, float32 (images, 3, height, width).

        Raises:
            TypeError: for an option that does not exist, or no images.
            ValueError: for images, settings or sizes that do not fit.
        """
        tensors = options.pop("return_tensors", None)
        layout = options.pop("input_data_format", None)
        for name in (*_WITHOUT_MEANING, "do_convert_rgb"):
            options.pop(name, None)
        unknown = [name for name in options if name not in self.DEFAULTS]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no option {', '.join(unknown)}; it has "
                f"{', '.join(self.DEFAULTS)}, return_tensors and input_data_format."
            )
        if tensors not in _TENSORS:
            raise ValueError(f"return_tensors is 'pt', 'np' or None, not {tensors!r}.")
        given = {name: value for name, value in options.items() if value is not None}
        settings = _checked({**self._settings, **given})
        # What can hold no images is no image either, which as_pixels says.
        several = (
            list(images) if isinstance(images, Iterable) and not is_image(images) else [images]
        )
        if not several:
            raise ValueError("There is no image to process; pass at least one.")
        planes = [_processed(as_pixels(image, layout), settings) for image in several]
        return BatchEncoding({"pixel_values": _together(planes, tensors)})

    preprocess = __call__

    # Files

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **settings: Any) -> Self:
        """Build the processor from the values of a file, and settings over them."""
        return cls(**{**values, **settings})

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, as they stand in a file."""
        return {**self._others, **self._settings, "image_processor_type": type(self).__name__}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Read the settings of a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            **kwargs: where to look, as for a model; settings over those of the file.

        Raises:
            FileNotFoundError: for a checkpoint without them.
        """
        path = pretrained_model_name_or_path
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        whole = resolve_file(path, PROCESSOR_FILE, optional=True, **hub)
        if whole is not None:
            values = read_json(whole, dict).get("image_processor")
            if isinstance(values, dict):
                return cls.from_dict(values, **kwargs)
        return cls.from_dict(read_json(resolve_file(path, IMAGE_FILE, **hub), dict), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write preprocessor_config.json into a folder, which is made when it is not there."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / IMAGE_FILE, json_text(self.to_dict()))


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings in one form.

    Raises:
        ValueError: for one that is out of its range.
    """
    settings = dict(settings)
    for name in ("size", "crop_size"):
        settings[name] = _size(name, settings[name])
    for name in ("image_mean", "image_std"):
        settings[name] = _numbers(name, settings[name])
    filter_number = settings["resample"]
    # transformers writes it as an enumeration, which is a number too.
    if filter_number not in range(len(_FILTERS)):
        raise ValueError(
            f"resample is the number of one of Pillow's filters, 0 to {len(_FILTERS) - 1}, not "
            f"{filter_number!r}."
        )
    settings["resample"] = int(filter_number)
    factor = settings["rescale_factor"]
    if not isinstance(factor, (int, float)) or not math.isfinite(factor):
        raise ValueError(f"rescale_factor is a number, not {factor!r}.")
    return settings


def _size(name: str, value: Any) -> dict[str, int]:
    if isinstance(value, int):
        value = {"height": value, "width": value}
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    wanted = {"height", "width"}
    if isinstance(value, Mapping):
        value = {key: number for key, number in value.items() if number is not None}
    if not isinstance(value, Mapping) or set(value) != wanted:
        raise ValueError(f"{name} has a height and a width, but is {value!r}.")
    for number in value.values():
        if not isinstance(number, int) or not 1 <= number <= 2**16:
            raise ValueError(f"{name} holds pixels from 1 to 65536, not {number!r}.")
    return {"height": int(value["height"]), "width": int(value["width"])}


def _numbers(name: str, value: Any) -> list[float]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    fine = all(isinstance(one, (int, float)) and math.isfinite(one) for one in listed)
    if len(listed) != 3 or not fine or (name == "image_std" and 0 in listed):
        raise ValueError(
            f"{name} is a number or three, one for each channel"
            f"{', none of them 0' if name == 'image_std' else ''}, but is {value!r}."
        )
    return [float(one) for one in listed]


def _processed(pixels: Pixels, settings: Mapping[str, Any]) -> Planes:
    """Return one image as (3, height, width)."""
    if settings["do_resize"]:
        image = pillow().Image.fromarray(pixels)
        size = (settings["size"]["width"], settings["size"]["height"])
        pixels = np.array(image.resize(size, resample=settings["resample"]))
    planes: npt.NDArray[Any] = np.moveaxis(pixels, -1, 0)
    if settings["do_center_crop"]:
        planes = _cropped(planes, settings["crop_size"]["height"], settings["crop_size"]["width"])
    if settings["do_rescale"]:
        planes = (planes.astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
        if settings["rescale_offset"]:
            planes = planes - np.float32(1)
    planes = planes.astype(np.float32)
    mean, std = (
        np.array(settings[name], dtype=np.float32)[:, None, None]
        for name in ("image_mean", "image_std")
    )
    if settings["do_normalize"]:
        planes = (planes - mean) / std
    if settings["include_top"]:
        planes = planes / std
    return np.ascontiguousarray(planes)


def _cropped(planes: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Return the middle, with zeros around it where the image is smaller than that."""
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


def _together(planes: list[Planes], tensors: str | None) -> Any:
    if tensors is None:
        return planes
    if len({one.shape for one in planes}) > 1:
        shapes = ", ".join(str(one.shape) for one in planes[:5])
        raise ValueError(
            f"These images end in several sizes ({shapes}), so they do not fit into one tensor; "
            "leave do_resize on, or process them one by one."
        )
    whole = np.stack(planes)
    return torch.from_numpy(whole) if tensors == "pt" else whole
