"""The commands take every family: what has no text, or several towers, is served or refused.

`verify` compares each tower of a model by itself; what needs a model of texts alone says so in one
sentence. A tokenizer that returns more than a family reads changes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastbert
from fastbert.tools import cli
from fastbert.tools.bench import bench
from fastbert.tools.verify import verify

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.insert(0, str(Path(__file__).parent))
from sentence_folders import tiny

TEXT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
TEXT["num_attention_heads"] = 2
VISION: dict[str, Any] = {"width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": 64}
VISION |= {"in_channels": [32], "out_channels": [32], "kernel_sizes": [3], "strides": [2]}
VISION |= {"num_block_repeats": [1], "expand_ratios": [6], "image_size": 40}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fastbert.AutoTokenizer.from_pretrained(tiny(tmp_path_factory.mktemp("source") / "model"))


@pytest.fixture(scope="module")
def align(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("align")
    text = {**TEXT, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    config = fastbert.AlignConfig(text_config=text, vision_config=VISION, projection_dim=16)
    fastbert.AlignModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def apertus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("apertus")
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = fastbert.ApertusConfig(vocab_size=len(tokenizer), **TEXT, **ids)
    fastbert.ApertusForTokenClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_both_towers_are_verified(align: Path) -> None:
    report = verify(align)
    places = {line.where for line in report.lines}
    assert report.passed
    assert {"text layer 1", "text output", "text pooler", "image output", "image pooler"} <= places


def test_an_image_tower_is_verified(align: Path, tmp_path: Path) -> None:
    model: Any = fastbert.AlignVisionModel.from_pretrained(align)
    model.save_pretrained(tmp_path)
    report = verify(tmp_path)
    assert report.passed
    assert {line.where for line in report.lines} == {"image output", "image pooler"}


@pytest.mark.parametrize("change", [{"hidden_dim": 8}, {"image_size": [64, 48]}], ids=str)
def test_an_image_tower_is_verified_at_a_size_it_takes(
    align: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    model: Any = fastbert.AlignVisionModel.from_pretrained(align, **change)
    model.save_pretrained(tmp_path)
    assert verify(tmp_path).passed


def test_texts_alone_are_embedded_and_timed(
    align: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"reads images.*get_text_features"):
        fastbert.SentenceEncoder.from_pretrained(align)
    with pytest.raises(ValueError, match="reads images"):
        bench(align)
    (tmp_path / "texts.txt").write_text("the cat sat\n")
    arguments = [str(align), str(tmp_path / "texts.txt"), "-o", str(tmp_path / "out.npy")]
    assert cli.main(["embed", *arguments]) == 2
    assert "reads images" in capsys.readouterr().err


def test_token_types_that_nobody_reads_change_nothing(apertus: Path, tokenizer: Any) -> None:
    model: Any = fastbert.ApertusForTokenClassification.from_pretrained(apertus)
    inputs = tokenizer(["the cat sat", "a dog"], padding=True, return_tensors="pt")
    assert "token_type_ids" in inputs
    with torch.inference_mode():
        found = model(**inputs).logits
        del inputs["token_type_ids"]
        torch.testing.assert_close(found, model(**inputs).logits, rtol=0.0, atol=0.0)
    assert verify(apertus).passed
    assert len(fastbert.pipeline("token-classification", model=apertus)("the cat sat")) == 3
