"""The image processor of EfficientNet, which ALIGN has too."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from fastbert.checkpoints.files import HUB_OPTIONS, resolve_file
from fastbert.checkpoints.storage import json_text, read_json, write_text
from fastbert.processors.images import Pixels, as_pixels, listed
from fastbert.processors.settings import checked, of_file
from fastbert.processors.steps import (
    are_fractions,
    cropped,
    normalized,
    rescaled,
    resized,
    target,
)
from fastbert.tokenizers.batch_encoding import BatchEncoding, as_tensor_type

IMAGE_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
# Of how transformers computes and what it calls things; they change no number here.
WITHOUT_MEANING = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "return_tensors"),
    *("data_format", "device", "disable_grouping", "use_fast", "backend"),
    *("_valid_processor_keys", "default_to_square"),
)


class EfficientNetImageProcessor:
    """Images to pixel values: resized, cropped, rescaled and normalised, each where asked for.

    Grey images and those with transparency are taken too: as red, green and blue, on white. The
    numbers are, bit for bit, those of transformers' backend for Pillow; its other one, over
    torchvision, resizes bytes with another rounding.

    Args:
        **settings: those of DEFAULTS, None for the default; others are kept for the file, and
            warned of where they would mean something in transformers.

    Attributes:
        do_resize, size, resample: whether to resize, to {"height", "width"} or so that an image
            that keeps its shape fits {"shortest_edge"}, {"shortest_edge", "longest_edge"} or
            {"max_height", "max_width"}, and the number of Pillow's filter.
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
            if name not in WITHOUT_MEANING and value not in (None, False):
                warnings.warn(
                    f"EfficientNetImageProcessor does not obey {name}={value!r}.", stacklevel=2
                )
        given = {name: settings.get(name) for name in self.DEFAULTS}
        self._settings = checked(
            {n: default if given[n] is None else given[n] for n, default in self.DEFAULTS.items()}
        )

    def __getattr__(self, name: str) -> Any:
        if name in type(self).DEFAULTS:
            return self._settings[name]
        if name in vars(self).get("_others", ()):
            return self._others[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.DEFAULTS:
            self._settings = checked({**self._settings, name: value})
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    # Computing

    def __call__(self, images: Any, **options: Any) -> BatchEncoding:
        """Compute what a model takes in.

        Args:
            images: one image or a list, also of lists; see `fastbert.processors.images.as_pixels`.
                An array of four dimensions is several.
            **options: settings for this call; return_tensors, None for a list of arrays, "pt" or
                "np" for one tensor, which needs images that end in one size; input_data_format,
                "channels_first" or "channels_last".

        Returns:
            pixel_values, float32 (images, 3, height, width); in the dtype of the pixels where
            neither do_rescale nor do_normalize nor include_top asks for arithmetic.

        Raises:
            TypeError: for an option that does not exist, or no images.
            ValueError: for images, settings or sizes that do not fit.
        """
        tensors = as_tensor_type(options.pop("return_tensors", None))
        layout = options.pop("input_data_format", None)
        for name in (*WITHOUT_MEANING, "do_convert_rgb"):
            options.pop(name, None)
        unknown = [name for name in options if name not in self.DEFAULTS]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no option {', '.join(unknown)}; it has "
                f"{', '.join(self.DEFAULTS)}, return_tensors and input_data_format."
            )
        given = {name: value for name, value in options.items() if value is not None}
        settings = checked({**self._settings, **given})
        several = listed(images)
        if not several:
            raise ValueError("There is no image to process; pass at least one.")
        planes = [_processed(as_pixels(image, layout), settings) for image in several]
        return BatchEncoding({"pixel_values": _together(planes, tensors)})

    preprocess = __call__

    # Files

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **settings: Any) -> Self:
        """Build the processor from the values of a file, and settings over them."""
        return cls(**of_file({**values, **settings}, cls.DEFAULTS))

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Build the processor from a file."""
        return cls.from_dict(read_json(Path(json_file), dict))

    def to_json_string(self) -> str:
        """Return all settings as the text of a file."""
        return json_text(self.to_dict())

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write all settings into a file."""
        write_text(Path(json_file_path), self.to_json_string())

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

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write preprocessor_config.json into a folder, which is made when it is not there.

        Returns:
            The path of the file, in a list.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / IMAGE_FILE)
        return [str(folder / IMAGE_FILE)]


def _processed(pixels: Pixels, settings: Mapping[str, Any]) -> Pixels:
    """Return one image as (3, height, width)."""
    if settings["do_rescale"] and pixels.dtype.kind == "f" and are_fractions(pixels):
        warnings.warn(
            "These pixels are fractions from 0 to 1 already, and do_rescale multiplies them by "
            f"{settings['rescale_factor']:.6g} once more; pass do_rescale=False to leave them.",
            stacklevel=4,
        )
    if settings["do_resize"]:
        height, width = target(pixels.shape[0], pixels.shape[1], settings["size"])
        pixels = resized(pixels, height, width, settings["resample"])
    planes: Pixels = np.moveaxis(pixels, -1, 0)
    if settings["do_center_crop"]:
        planes = cropped(planes, settings["crop_size"]["height"], settings["crop_size"]["width"])
    if settings["do_rescale"]:
        planes = rescaled(planes, settings["rescale_factor"])
        if settings["rescale_offset"]:
            planes = planes - np.float32(1)
    if settings["do_normalize"]:
        planes = normalized(planes, settings["image_mean"], settings["image_std"])
    if settings["include_top"]:
        planes = normalized(planes, None, settings["image_std"])
    return np.ascontiguousarray(planes)


def _together(planes: list[Pixels], tensors: str | None) -> Any:
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
