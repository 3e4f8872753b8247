"""Images, arrays and settings of all kinds give what transformers' Pillow backend gives."""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_align_processor import KAKAOBRAIN, folder, image
from transformers.models.efficientnet.image_processing_pil_efficientnet import (
    EfficientNetImageProcessorPil,
)

import fastbert

__all__ = ["folder"]

BYTES = np.random.default_rng(3).integers(0, 256, (20, 31, 3), dtype=np.uint8)
NOTHING = {"do_resize": False, "do_rescale": False, "do_normalize": False, "include_top": False}


def png(mode: str = "RGB", **info: Any) -> bytes:
    found = image(20, 31, mode)
    found.info.update(info)
    buffer = io.BytesIO()
    found.save(buffer, "PNG")
    return buffer.getvalue()


def equal(given: Any, settings: dict[str, Any], **options: Any) -> None:
    ours = fastbert.EfficientNetImageProcessor(**settings)
    # What is read from a file has three colours already.
    convert = None if isinstance(given, str) else True
    other = EfficientNetImageProcessorPil(**settings, do_convert_rgb=convert)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "These pixels are fractions")
        found = ours(given, return_tensors="np", **options)["pixel_values"]
    expected = other(given, return_tensors="np", **options)["pixel_values"]
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


ARRAYS: dict[str, Any] = {
    "float32 bytes": BYTES.astype(np.float32),
    "float64 fractions": BYTES / 255.0,
    "float32 fractions": (BYTES / 255.0).astype(np.float32),
    "float16 planes": np.moveaxis(BYTES / 255.0, -1, 0).astype(np.float16),
    "fractions with opacity": np.dstack([BYTES, BYTES[:, :, :1]]) / 255.0,
    "bytes with opacity": np.dstack([BYTES, BYTES[:, :, :1]]),
    "grey planes": BYTES[None, :, :, 0],
    "grey fractions": BYTES[:, :, :1] / 255.0,
    "int16": BYTES.astype(np.int16),
    "zeros and ones": np.round(BYTES / 255.0),
    "tensor of fractions": torch.from_numpy(BYTES / 255.0),
    "several": np.stack([BYTES, BYTES]) / 255.0,
    "arrays of several": [np.stack([BYTES, BYTES[::-1]])],
    "lists": [[image(20, 31), image(9, 8)], [BYTES]],
}


@pytest.mark.parametrize(
    "settings",
    [{}, KAKAOBRAIN, {"do_rescale": False}, {"do_resize": False, "do_rescale": False}, NOTHING],
    ids=["default", "kakaobrain", "not rescaled", "not resized", "nothing"],
)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_all_kinds(name: str, settings: dict[str, Any]) -> None:
    if name == "lists":
        settings = {**settings, "do_resize": True}
    equal(ARRAYS[name], settings)


def test_tensors_that_numpy_lacks() -> None:
    given = torch.from_numpy(BYTES / 255.0)
    ours = fastbert.EfficientNetImageProcessor(do_rescale=False)
    expected = ours(given.bfloat16().float())["pixel_values"]
    for one in (given.bfloat16(), given.bfloat16().float().requires_grad_()):
        assert np.array_equal(ours(one)["pixel_values"], expected)


def test_fractions_that_are_rescaled_are_told() -> None:
    ours = fastbert.EfficientNetImageProcessor()
    with pytest.warns(UserWarning, match="pass do_rescale=False"):
        ours(BYTES / 255.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(BYTES / 255.0, do_rescale=False)
        ours(BYTES.astype(np.float32))


@pytest.mark.parametrize(
    "size",
    [
        30,
        (30, 41),
        np.int64(30),
        {"shortest_edge": 30},
        {"shortest_edge": 20},
        {"shortest_edge": 30, "longest_edge": 40},
        {"shortest_edge": 30, "longest_edge": 400},
        {"max_height": 50, "max_width": 45},
        {"max_height": 10, "max_width": 500},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(20, 31), (57, 20), (33, 33)], ids=str)
def test_sizes(size: Any, shape: tuple[int, int]) -> None:
    equal(image(*shape), {"size": size if not isinstance(size, np.int64) else int(size)})
    if isinstance(size, np.int64):
        ours = fastbert.EfficientNetImageProcessor(size=size)
        assert ours.size == {"height": 30, "width": 30}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_files_are_read_as_transformers_reads_them(mode: str, tmp_path: Path) -> None:
    """What is transparent in a file keeps its colour; an image of Pillow is put on white."""
    path = tmp_path / ("one.tiff" if mode == "CMYK" else "one.png")
    image(20, 31, mode).save(path)
    equal(str(path), {})
    text = base64.b64encode(path.read_bytes()).decode()
    equal(text, {})
    equal(f"data:image/png;base64,{text}", {})


def test_a_colour_that_stands_for_transparent(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(png("P", transparency=3))
    equal(str(path), {})
    with Image.open(path) as opened:
        equal(opened, {})


def test_an_image_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(png())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"one\.png' is no image that Pillow reads"):
        fastbert.EfficientNetImageProcessor()(path)


# Settings and files


HUB: dict[str, Any] = {
    **KAKAOBRAIN,
    "crop_size": {"height": 33, "width": 33},
    "size": {"height": 44, "width": 44},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_resize": True,
    "do_rescale": True,
    "image_processor_type": "EfficientNetImageProcessor",
    "processor_class": "AlignProcessor",
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"size": 44, "crop_size": [33, 30]},
        {"_valid_processor_keys": ["images"], "do_pad": None, "default_to_square": True},
        {"image_mean": None},
        {"do_center_crop": None, "crop_size": None},
        {"do_resize": None, "size": None, "resample": None},
        {"do_normalize": None, "image_std": None},
        {"image_processor_type": "EfficientNetImageProcessorFast", "data_format": "channels_first"},
    ],
    ids=str,
)
def test_files_of_all_ages(folder: Path, change: dict[str, Any], tmp_path: Path) -> None:
    fastbert.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**HUB, **change}), encoding="utf-8")
    expected = EfficientNetImageProcessorPil.from_pretrained(tmp_path)(image())["pixel_values"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ours in (
            fastbert.EfficientNetImageProcessor.from_pretrained(tmp_path),
            fastbert.EfficientNetImageProcessor.from_json_file(file),
            fastbert.AutoImageProcessor.from_pretrained(tmp_path),
            # The file names its class, so that no config.json is needed.
            fastbert.AutoProcessor.from_pretrained(tmp_path).image_processor,
        ):
            found = ours(image())["pixel_values"][0]
            assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_nulls_that_would_be_read_and_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**HUB, "resample": None}), encoding="utf-8")
    with pytest.raises(ValueError, match="resample is null, but do_resize would read it"):
        fastbert.EfficientNetImageProcessor.from_pretrained(tmp_path)
    file.write_text(json.dumps({**HUB, "image_processor_type": "ViTImageProcessor"}), "utf-8")
    with pytest.raises(ValueError, match="for a ViTImageProcessor"):
        fastbert.AutoImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"AutoImageProcessor\.from_pretrained"):
        fastbert.AutoImageProcessor()
    assert fastbert.EfficientNetImageProcessor(size=None, resample=None).resample == 3


def test_what_saving_returns_and_what_is_kept(folder: Path, tmp_path: Path) -> None:
    whole = fastbert.AlignProcessor.from_pretrained(folder)
    files = whole.save_pretrained(tmp_path / "whole")
    assert str(tmp_path / "whole" / "processor_config.json") in files
    assert all(Path(file).is_file() for file in files)
    assert json.loads(whole.to_json_string()) == whole.to_dict()
    assert "AlignProcessor" in repr(whole)
    ours = fastbert.EfficientNetImageProcessor(do_convert_rgb=True)
    (file,) = ours.save_pretrained(tmp_path / "images")
    assert json.loads(ours.to_json_string()) == json.loads(Path(file).read_text("utf-8"))
    assert ours.do_convert_rgb is True
    with pytest.raises(AttributeError, match="do_pad"):
        _ = ours.do_pad


# Both parts


def test_inputs_become_what_a_model_computes_in(folder: Path) -> None:
    ours = fastbert.AlignProcessor.from_pretrained(folder)
    other = transformers.AlignProcessor(
        EfficientNetImageProcessorPil.from_pretrained(folder),
        transformers.BertTokenizer.from_pretrained(folder),
    )
    assert ours.model_input_names == other.model_input_names
    for arguments in ((torch.bfloat16,), ("cpu", torch.float16), ("cpu",)):
        found, expected = (
            one(image(), "a cat", return_tensors="pt").to(*arguments) for one in (ours, other)
        )
        assert list(found) == list(expected)
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            assert torch.equal(found[name], expected[name])
    moved = ours(image(), return_tensors="pt").to(device="cpu", dtype=torch.float64)
    assert moved["pixel_values"].dtype == torch.float64


@pytest.mark.parametrize(
    "options",
    [
        {"common_kwargs": {"return_tensors": "np"}},
        {"data_format": "channels_last", "device": "cpu", "disable_grouping": True},
        {"videos": None, "audio": None},
        {"text_kwargs": {"max_length": 9}, "images_kwargs": {"do_rescale": False}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_processors(folder: Path, options: dict[str, Any]) -> None:
    ours = fastbert.AlignProcessor.from_pretrained(folder)
    other = transformers.AlignProcessor(
        EfficientNetImageProcessorPil.from_pretrained(folder),
        transformers.BertTokenizer.from_pretrained(folder),
    )
    given = ([image(), image(50, 9)], ["a cat", "a dog ."])
    found, expected = (one(*given, **options) for one in (ours, other))
    assert list(found) == list(expected)
    for name in expected:
        assert type(found[name]) is type(expected[name])
        for one, two in zip(found[name], expected[name], strict=True):
            assert np.array_equal(one, two)


def test_options_that_no_part_has(folder: Path) -> None:
    ours = fastbert.AlignProcessor.from_pretrained(folder)
    for options in ({"text_kwargs": {"nonsense": 1}}, {"videos": [1]}, {"common_kwargs": {"x": 1}}):
        with pytest.raises(TypeError, match="AlignProcessor has no option"):
            ours(image(), "a cat", **options)
