"""ALIGN's processor gives the numbers of transformers, for images and texts of all kinds."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from align_pair import VISION, WHOLE, perturbed
from PIL import Image
from transformers.models.efficientnet.image_processing_pil_efficientnet import (
    EfficientNetImageProcessorPil,
)

import fastbert
from fastbert.tools import cli

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY += ["this", "is", "a", "photo", "of", "cat", "dog", ".", "car"]
KAKAOBRAIN: dict[str, Any] = {
    "do_center_crop": True,
    "do_normalize": False,
    "include_top": False,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "resample": 2,
}


def image(height: int = 40, width: int = 61, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processor")
    tokenizer = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(VOCABULARY)})
    processor = EfficientNetImageProcessorPil(
        **KAKAOBRAIN, size={"height": 44, "width": 50}, crop_size={"height": 33, "width": 33}
    )
    transformers.AlignProcessor(processor, tokenizer).save_pretrained(path)
    torch.manual_seed(0)
    perturbed(transformers.AlignModel(transformers.AlignConfig(**WHOLE))).save_pretrained(path)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "LA"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        KAKAOBRAIN,
        {**KAKAOBRAIN, "do_resize": False, "crop_size": {"height": 51, "width": 32}},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 46, "width": 70}},
        {"do_rescale": False, "size": {"height": 7, "width": 90}},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 0},
    ],
    ids=["default", "kakaobrain", "crop", "padded", "bytes", "channels"],
)
def test_images_equal(settings: dict[str, Any], mode: str) -> None:
    ours = fastbert.EfficientNetImageProcessor(**settings)
    other = EfficientNetImageProcessorPil(**settings, do_convert_rgb=True)
    found = ours(image(mode=mode), return_tensors="pt")["pixel_values"]
    expected = other(image(mode=mode), return_tensors="pt")["pixel_values"]
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_several_sizes_arrays_and_paths(tmp_path: Path) -> None:
    ours, other = fastbert.EfficientNetImageProcessor(), EfficientNetImageProcessorPil()
    images = [image(), image(90, 20)]
    expected = other(images, return_tensors="np")["pixel_values"]
    images[0].save(tmp_path / "one.png")
    arrays = [np.array(one) for one in images]
    planes = [torch.from_numpy(np.moveaxis(one, -1, 0).copy()) for one in arrays]
    for given in (images, arrays, planes, [tmp_path / "one.png", arrays[1]]):
        assert np.array_equal(ours(given, return_tensors="np")["pixel_values"], expected)
    listed = ours(images, do_resize=False)["pixel_values"]
    assert [one.shape for one in listed] == [(3, 40, 61), (3, 90, 20)]


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        ([], {}, ValueError, "no image"),
        (3, {}, TypeError, "not a int"),
        ([3], {}, TypeError, "not a int"),
        (np.zeros((4, 5, 3), bool), {}, ValueError, "bool"),
        (np.full((6, 5, 3), -0.5), {}, ValueError, "fractions from 0 to 1, but .* from -0.5"),
        (np.full((6, 5, 3), np.nan), {}, ValueError, "from nan"),
        (np.full((6, 5, 4), 1.5), {}, ValueError, "beside an opacity"),
        (np.zeros((2, 2, 6, 5, 3), np.uint8), {}, ValueError, r"not \(2, 6, 5, 3\)"),
        (b"GIF", {}, TypeError, "not a bytes"),
        (io.BytesIO(b"GIF"), {}, TypeError, "not a BytesIO"),
        ({"image": 1}, {}, TypeError, "not a dict"),
        ([[[0, 0], [0, 0]]], {}, TypeError, "not a int"),
        ("data:image/png;base64,AAAA", {}, ValueError, "no image that Pillow reads"),
        (Image.new("RGB", (0, 5)), {}, ValueError, "0 x 5 pixels has none"),
        (np.full((6, 5, 3), 300), {}, ValueError, "from 300 to 300"),
        (np.zeros((6, 5, 2), np.uint8), {}, ValueError, "does not tell"),
        (np.zeros((3, 5, 3), np.uint8), {}, ValueError, "input_data_format"),
        (image(), {"return_tensors": "tf"}, ValueError, "return_tensors"),
        (image(), {"sise": 3}, TypeError, "no option sise"),
        (image(), {"size": {"longest_edge": 3}}, ValueError, "a height and a width"),
        (image(), {"crop_size": {"shortest_edge": 3}}, ValueError, "a height and a width"),
        ([image(), image(9)], {"do_resize": False, "return_tensors": "pt"}, ValueError, "several"),
        ("https://example.com/cat.png", {}, ValueError, "fetches no images"),
        ("nowhere.png", {}, FileNotFoundError, "nowhere.png"),
    ],
)
def test_bad_images(given: Any, options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        fastbert.EfficientNetImageProcessor()(given, **options)


@pytest.mark.parametrize(
    "settings",
    [{"resample": 9}, {"image_std": 0}, {"image_mean": [1, 2]}, {"rescale_factor": "x"}],
    ids=lambda settings: next(iter(settings)),
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        fastbert.EfficientNetImageProcessor(**settings)


def test_settings_that_are_not_obeyed_are_named() -> None:
    with pytest.warns(UserWarning, match="do_pad"):
        fastbert.EfficientNetImageProcessor(do_pad=True)


def test_files_go_both_ways(folder: Path, tmp_path: Path) -> None:
    ours = fastbert.AutoProcessor.from_pretrained(folder)
    assert type(ours) is fastbert.AlignProcessor and ours.image_processor.resample == 2
    ours.save_pretrained(tmp_path)
    again = EfficientNetImageProcessorPil.from_pretrained(tmp_path)
    ours.image_processor.save_pretrained(tmp_path / "images")
    third = EfficientNetImageProcessorPil.from_pretrained(tmp_path / "images")
    expected = ours(images=image(), return_tensors="pt")["pixel_values"]
    for other in (again, third):
        assert torch.equal(other(image(), return_tensors="pt")["pixel_values"], expected)
    fourth = fastbert.EfficientNetImageProcessor.from_pretrained(tmp_path / "images")
    assert fourth.to_dict() == ours.image_processor.to_dict()


@pytest.mark.parametrize(
    "options", [{}, {"padding": True}, {"max_length": 9}, {"padding": False}], ids=str
)
@pytest.mark.parametrize("text", ["a cat", ["a photo of a cat", "dog"]], ids=["one", "list"])
def test_texts_equal(folder: Path, text: Any, options: dict[str, Any]) -> None:
    ours = fastbert.AutoProcessor.from_pretrained(folder)
    other = transformers.AlignProcessor(
        EfficientNetImageProcessorPil(), transformers.BertTokenizer.from_pretrained(folder)
    )
    assert dict(ours(text=text, **options)) == dict(other(text=text, **options))
    if options.get("padding", True):
        found = ours(images=image(), text=text, return_tensors="pt", **options)
        assert list(found) == ["input_ids", "token_type_ids", "attention_mask", "pixel_values"]
        assert found["input_ids"].dim() == 2


def test_nothing_and_nonsense(folder: Path) -> None:
    processor = fastbert.AlignProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="at least one input"):
        processor()
    with pytest.raises(TypeError, match="no option nonsense"):
        processor(images=image(), nonsense=1)
    with pytest.raises(TypeError, match="EfficientNetImageProcessor"):
        fastbert.AlignProcessor(None, processor.tokenizer)  # type: ignore[arg-type]


def pipelines(folder: Path) -> tuple[Any, Any]:
    """Return ours and transformers' over the same files."""
    ours = fastbert.pipeline("zero-shot-image-classification", model=folder)
    other = transformers.pipeline(
        "zero-shot-image-classification",
        model=transformers.AlignModel.from_pretrained(folder),
        tokenizer=transformers.BertTokenizer.from_pretrained(folder),
        image_processor=EfficientNetImageProcessorPil.from_pretrained(folder),
    )
    return ours, other


def test_the_pipeline_equals(folder: Path, tmp_path: Path) -> None:
    labels = ["cat", "dog", "car"]
    ours, other = pipelines(folder)
    image(50, 30).save(tmp_path / "two.png")
    given: list[Any] = [image(), str(tmp_path / "two.png")]
    found, expected = (
        one(given, candidate_labels=labels, hypothesis_template="a photo of {}")
        for one in (ours, other)
    )
    for one, two in zip(found, expected, strict=True):
        assert [answer["label"] for answer in one] == [answer["label"] for answer in two]
        scores = [[answer["score"] for answer in answers] for answers in (one, two)]
        assert np.allclose(*scores, atol=1e-5)
    assert ours(given[0], labels, hypothesis_template="a photo of {}") == found[0]
    assert list(ours(iter(given), labels, hypothesis_template="a photo of {}")) == found
    for options, words in (
        ({}, "at least one label"),
        ({"candidate_labels": labels, "hypothesis_template": "x"}, "no place for the label"),
    ):
        with pytest.raises(ValueError, match=words):
            ours(given, **options)
    with pytest.raises(TypeError, match="takes no images"):
        fastbert.pipeline("feature-extraction", model=folder, image_processor=folder)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "LAB"])
def test_the_pipeline_sees_what_theirs_sees(folder: Path, mode: str) -> None:
    labels = ["cat", "dog", "car"]
    ours, other = pipelines(folder)
    given = image(50, 30, "RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        given = Image.fromarray(np.array(given), "LAB")
    if mode == "P":
        given.info["transparency"] = 3
    seen: list[torch.Tensor] = []
    for one in (ours, other):
        one.model.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
        )
    ours.model.get_image_features = lambda pixels, features=ours.model.get_image_features: (
        seen.append(pixels),
        features(pixels),
    )[1]
    answers = [one(given, candidate_labels=labels) for one in (ours, other)]
    assert torch.equal(*seen)
    assert [one["label"] for one in answers[0]] == [one["label"] for one in answers[1]]


def test_a_pipeline_is_saved_whole(folder: Path, tmp_path: Path) -> None:
    ours = fastbert.pipeline("zero-shot-image-classification", model=folder)
    ours.save_pretrained(tmp_path)
    again = fastbert.pipeline("zero-shot-image-classification", model=tmp_path)
    expected = ours(image(), ["cat", "dog"])
    assert again(image(), ["cat", "dog"]) == expected
    apart = fastbert.pipeline(
        "zero-shot-image-classification", model=again.model, processor=tmp_path
    )
    assert apart(image(), ["cat", "dog"]) == expected
    with pytest.raises(TypeError, match="no processor"):
        fastbert.pipeline("feature-extraction", model=folder, processor=folder)


def test_what_the_pipeline_is_called_with(folder: Path, tmp_path: Path) -> None:
    ours = fastbert.pipeline("zero-shot-image-classification", model=folder)
    given, labels = image(), ["cat", "dog"]
    expected = ours(given, labels)
    array = np.array(given)
    for one in (array, torch.from_numpy(array)):
        assert ours(one, labels) == expected and ours([one], labels) == [expected]
    assert ours(image=given, candidate_labels=np.array(labels), timeout=3.0) == expected
    assert ours(given, labels, tokenizer_kwargs={"truncation": True}) == expected
    buffer = io.BytesIO()
    given.save(buffer, "PNG")
    assert ours(base64.b64encode(buffer.getvalue()).decode(), labels) == expected
    for bad in (buffer, b"x", 3, {"image": given}, [None], None):
        with pytest.raises(TypeError, match=r"image"):
            ours(bad, labels)
    with pytest.raises(TypeError, match="takes an image"):
        ours(given, labels, image=given)
    for template in ("{} and {}", "{label}", "a {", None):
        with pytest.raises(ValueError, match="no place for the label"):
            ours(given, labels, hypothesis_template=template)


def test_the_command_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    image().save(tmp_path / "one.png")
    lines = tmp_path / "lines"
    lines.write_text(f"{tmp_path / 'one.png'}\nnowhere.png\n", encoding="utf-8")
    command = ["run", "--task", "zero-shot-image-classification", "--model", str(folder)]
    assert cli.main([*command, "--labels", "cat,dog", str(lines)]) == 1
    said = capsys.readouterr()
    expected = fastbert.pipeline("zero-shot-image-classification", model=folder)(
        tmp_path / "one.png", ["cat", "dog"]
    )
    assert json.loads(said.out) == expected
    assert "nowhere.png" in said.err


def test_import_needs_no_pillow() -> None:
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "import fastbert\n"
        "from fastbert import AlignModel, AlignProcessor, pipeline\n"
        "processor = fastbert.EfficientNetImageProcessor()\n"
        "try:\n    processor('x.png')\n"
        "    processor(__import__('numpy').zeros((4, 4), 'uint8'))\n"
        "except ImportError as error:\n    assert 'fastbert-kernels[vision]' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_pipeline_needs_the_right_head(folder: Path) -> None:
    tower = fastbert.AlignVisionModel(fastbert.AlignVisionConfig(**VISION))
    with pytest.raises(ValueError):
        fastbert.pipeline("zero-shot-image-classification", model=tower, tokenizer=folder,
                          image_processor=folder)  # fmt: skip
