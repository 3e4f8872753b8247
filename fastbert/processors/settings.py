"""Settings of an image processor in one form, or the sentence that says why they have none."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# What a size may name: both sides, or what the sides of an image that keeps its shape have to fit.
_SIZES = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)
# A setting to the steps that read it.
_READ_BY = {
    "size": ("do_resize",),
    "resample": ("do_resize",),
    "crop_size": ("do_center_crop",),
    "rescale_factor": ("do_rescale",),
    "image_mean": ("do_normalize",),
    "image_std": ("do_normalize", "include_top"),
}


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in one form.

    Args:
        settings: all of EfficientNetImageProcessor.DEFAULTS.

    Raises:
        ValueError: for one that is out of its range.
    """
    settings = dict(settings)
    settings["size"] = _size("size", settings["size"], _SIZES)
    settings["crop_size"] = _size("crop_size", settings["crop_size"], _SIZES[:1])
    for name in ("image_mean", "image_std"):
        settings[name] = _numbers(name, settings[name])
    filter_number = settings["resample"]
    # transformers writes it as an enumeration, which is a number too.
    if filter_number not in range(len(FILTERS)):
        raise ValueError(
            f"resample is the number of one of Pillow's filters, 0 to {len(FILTERS) - 1}, not "
            f"{filter_number!r}."
        )
    settings["resample"] = int(filter_number)
    factor = settings["rescale_factor"]
    if not isinstance(factor, (int, float)) or not math.isfinite(factor):
        raise ValueError(f"rescale_factor is a number, not {factor!r}.")
    return settings


def of_file(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file without its nulls: a step that is null is left out.

    Args:
        values: those of the file.
        defaults: of the processor, for what the file does not name.

    Raises:
        ValueError: for a null that a step would read.
    """
    found = {
        name: False if value is None and isinstance(defaults.get(name), bool) else value
        for name, value in values.items()
    }
    for name, steps in _READ_BY.items():
        reading = [step for step in steps if found.get(step, defaults[step])]
        if name in found and found[name] is None and reading:
            raise ValueError(
                f"{name} is null, but {' and '.join(reading)} would read it; give it a value, or "
                f"turn {' and '.join(reading)} off."
            )
    return {name: value for name, value in found.items() if value is not None}


def _size(name: str, value: Any, kinds: tuple[set[str], ...]) -> dict[str, int]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    elif not isinstance(value, Mapping) and hasattr(value, "__index__"):
        value = {"height": value, "width": value}
    if isinstance(value, Mapping):
        value = {key: number for key, number in value.items() if number is not None}
    if not isinstance(value, Mapping) or set(value) not in kinds:
        others = ", or shortest_edge, or max_height and max_width" if len(kinds) > 1 else ""
        raise ValueError(f"{name} has a height and a width{others}, but is {value!r}.")
    for number in value.values():
        if not hasattr(number, "__index__") or not 1 <= number <= 2**16:
            raise ValueError(f"{name} holds pixels from 1 to 65536, not {number!r}.")
    return {key: operator.index(number) for key, number in value.items()}


def _numbers(name: str, value: Any) -> list[float]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    fine = all(isinstance(one, (int, float)) and math.isfinite(one) for one in listed)
    if len(listed) != 3 or not fine or (name == "image_std" and 0 in listed):
        raise ValueError(
            f"{name} is a number or three, one for each channel"
            f"{', none of them 0' if name == 'image_std' else ''}, but is {value!r}."
        )
    return [float(one) for one in listed]
