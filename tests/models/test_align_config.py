"""ALIGN's configurations are transformers', and what cannot be built is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from align_pair import TEXT, VISION, WHOLE

import fastbert


@pytest.mark.parametrize("name", ["AlignConfig", "AlignVisionConfig"])
def test_defaults_equal(name: str) -> None:
    ours, other = getattr(fastbert, name)().to_dict(), getattr(transformers, name)().to_dict()
    skipped = {"transformers_version", "architectures", "_name_or_path"}
    for key in other.keys() - skipped - {"text_config", "vision_config"}:
        assert ours[key] == other[key], key


def test_documented_example() -> None:
    config = fastbert.AlignConfig(
        text_config=fastbert.AlignTextConfig(**TEXT),
        vision_config=fastbert.AlignVisionConfig(**VISION),
        projection_dim=16,
    )
    assert fastbert.AlignModel(config).config is config
    assert config.get_text_config() is config.text_config
    again = fastbert.AlignConfig.from_text_vision_configs(
        config.text_config, config.vision_config, projection_dim=16
    )
    assert again == config
    assert fastbert.AlignConfig().vision_config.num_hidden_layers == 55
    with pytest.raises(AttributeError):
        _ = fastbert.AlignConfig().hidden_size


def test_files_go_both_ways(tmp_path: Path) -> None:
    fastbert.AlignConfig(**WHOLE).save_pretrained(tmp_path)
    read = transformers.AlignConfig.from_pretrained(tmp_path)
    assert read.vision_config.num_hidden_layers == 7
    assert read.text_config.hidden_size == TEXT["hidden_size"]
    read.save_pretrained(tmp_path / "theirs")
    again = fastbert.AlignConfig.from_pretrained(tmp_path / "theirs")
    assert again.vision_config.strides == VISION["strides"]
    assert fastbert.AlignVisionConfig.from_pretrained(tmp_path / "theirs").hidden_dim == 16
    assert fastbert.AlignTextConfig.from_pretrained(tmp_path / "theirs").vocab_size == 61


def test_parts_are_overridden_by_what_is_named(tmp_path: Path) -> None:
    fastbert.AlignConfig(**WHOLE).save_pretrained(tmp_path)
    for library in (fastbert, transformers):
        config = library.AlignConfig.from_pretrained(
            tmp_path, text_config={"hidden_size": 64}, vision_config={"strides": [1, 1, 1]}
        )
        assert type(config.text_config) is library.AlignTextConfig
        assert (config.text_config.hidden_size, config.text_config.vocab_size) == (64, 61)
        assert (config.vision_config.strides, config.vision_config.hidden_dim) == ([1, 1, 1], 16)


def test_files_of_version_4(tmp_path: Path) -> None:
    old = {"torch_dtype": None, "top_k": 50, "num_beams": 1, "return_dict": True}
    values = {
        "model_type": "align",
        "projection_dim": 16,
        "temperature_init_value": 0.5,
        "text_config": {**TEXT, **old, "model_type": "align_text_model"},
        "vision_config": {**VISION, **old, "num_hidden_layers": 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    config = fastbert.AlignConfig.from_pretrained(tmp_path)
    assert config.text_config.top_k == 50
    assert config.vision_config.num_hidden_layers == 7  # it follows from the lists
    assert float(fastbert.AlignModel(config).temperature.detach()) == 0.5


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"pooling_type": "median"}, "pooling_type is 'mean' or 'max'"),
        ({"strides": [1, 2]}, "equally long"),
        ({"strides": [1, 2, 3]}, "strides are 1 or 2"),
        ({"kernel_sizes": [3, 0, 3]}, "kernel_sizes holds whole numbers"),
        ({"hidden_act": "swush"}, "There is no activation 'swush'"),
        ({"hidden_dim": 0}, "hidden_dim is a whole number"),
        ({"out_channels": [16, 24, 64]}, "projection_dim = 16"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_built(vision: dict[str, Any], words: str) -> None:
    config = fastbert.AlignConfig(**{**WHOLE, "vision_config": {**VISION, **vision}})
    with pytest.raises(ValueError, match=words):
        fastbert.AlignModel(config)


def test_a_part_of_another_kind() -> None:
    config = fastbert.AlignConfig(**{**WHOLE, "text_config": fastbert.BertConfig()})
    with pytest.raises(TypeError, match="text_config of an AlignConfig is of type AlignTextConfig"):
        fastbert.AlignModel(config)


@pytest.mark.parametrize(
    ("pixels", "error", "words"),
    [
        (None, ValueError, "specify pixel_values"),
        (torch.zeros(1, 4, 33, 33), ValueError, r"\(batch, 3, height, width\)"),
        (torch.zeros(3, 33, 33), ValueError, r"\(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 33, 33, dtype=torch.uint8), TypeError, "floating"),
        ([[0.0]], TypeError, "list"),
        (torch.zeros(1, 3, 1, 33), ValueError, "height of 1 pixels are too small"),
        (torch.zeros(1, 3, 33, 200), ValueError, "hidden_dim = 16"),
    ],
)
def test_bad_pixels(pixels: Any, error: type[Exception], words: str) -> None:
    model = fastbert.AlignVisionModel(fastbert.AlignVisionConfig(**VISION)).eval()
    with pytest.raises(error, match=words):
        model(pixels)
    with pytest.raises(TypeError, match="no argument nonsense"):
        model(torch.zeros(1, 3, 33, 33), nonsense=1)


def test_no_ids() -> None:
    model = fastbert.AlignModel(fastbert.AlignConfig(**WHOLE)).eval()
    with pytest.raises(ValueError, match="input_ids"):
        model(pixel_values=torch.zeros(1, 3, 33, 33))
    with pytest.raises(ValueError, match="pixel_values"):
        model(input_ids=torch.ones(1, 3, dtype=torch.long))
