"""An int8 model that fastbert saved is a checkpoint that transformers reads.

What config.json says must lead its loader to us and not to bitsandbytes, and what it loads must
compute what fastbert computes from the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import accelerating
import oracle
import pytest
import torch
import transformers

import fastbert
import fastbert.integrations.transformers
from fastbert.layers.linear import Int8Linear

NAMES = ["BertModel", "BertForMaskedLM", "CamembertForSequenceClassification",
         "FlaubertModel", "RemBertForTokenClassification"]  # fmt: skip


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    accelerating.plain(name).save_pretrained(folder / "plain")
    kind = getattr(fastbert, name)
    model = kind.from_pretrained(folder / "plain", quantization="int8", dtype=dtype)
    model.save_pretrained(folder / "int8")
    return model


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_it(name: str, tmp_path: Path) -> None:
    ours = saved(name, tmp_path)
    stored = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert stored["quantization_config"] == {"quant_method": "fastbert", "bits": 8}
    theirs, report = getattr(transformers, name).from_pretrained(
        tmp_path / "int8", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    theirs.eval()
    assert any(isinstance(module, Int8Linear) for module in theirs.modules())
    expected, found = accelerating.asked(ours), accelerating.asked(theirs)
    oracle.close(expected[0], found[0], accelerating.MASK, 0.05, name)
    fastbert.accelerate(theirs)
    oracle.close(expected[0], accelerating.served(theirs)[0], accelerating.MASK, 2e-5, name)
    theirs.save_pretrained(tmp_path / "again")
    again = getattr(fastbert, name).from_pretrained(tmp_path / "again")
    oracle.close(expected[0], accelerating.asked(again)[0], accelerating.MASK, 1e-6, name)


def test_scales_stay_exact_in_half_precision(tmp_path: Path) -> None:
    ours = saved("BertModel", tmp_path, torch.bfloat16)
    theirs = transformers.BertModel.from_pretrained(tmp_path / "int8", dtype=torch.bfloat16)
    one, other = ours.encoder.layer[0].output.dense, theirs.encoder.layer[0].output.dense
    assert torch.equal(one.weight_scale, other.weight_scale)
    assert theirs.embeddings.word_embeddings.weight.dtype is torch.bfloat16
    wide = transformers.BertModel.from_pretrained(tmp_path / "int8", dtype=torch.float32)
    assert wide.embeddings.word_embeddings.weight.dtype is torch.float32


def test_files_of_earlier_versions(tmp_path: Path) -> None:
    ours = saved("BertModel", tmp_path)
    path = tmp_path / "int8" / "config.json"
    stored = json.loads(path.read_text())
    stored["quantization_config"] = {"quant_method": "fastbert", "load_in_8bit": True}
    path.write_text(json.dumps(stored))
    again = fastbert.BertModel.from_pretrained(tmp_path / "int8")
    accelerating.same(accelerating.asked(ours)[0], accelerating.asked(again)[0], 0.0)
    stored["quantization_config"] = {"quant_method": "fastbert", "bits": 4}
    path.write_text(json.dumps(stored))
    for kind in (fastbert.BertModel, transformers.BertModel):
        with pytest.raises(ValueError, match="bits=4, but fastbert's weights have 8"):
            kind.from_pretrained(tmp_path / "int8")


def test_transformers_is_not_asked_to_quantise(tmp_path: Path) -> None:
    from fastbert.integrations.quantizer import Int8Config

    accelerating.plain("BertModel").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load the model with fastbert and quantization='int8'"):
        transformers.BertModel.from_pretrained(tmp_path, quantization_config=Int8Config())
