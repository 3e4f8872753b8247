"""bench.large: what it writes is a checkpoint that others read, and what it prints was computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import fastbert
from bench import large
from bench.decoders import SHAPES

TINY = SHAPES["apertus-tiny"]


def test_the_checkpoint_is_one(tmp_path: Path) -> None:
    size = large.write_checkpoint(TINY, tmp_path / "model", shard=20_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    assert {*index["weight_map"].values()} == {file.name for file in files}
    theirs, told = transformers.ApertusForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values())
    ours = fastbert.ApertusForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        expected = theirs.eval()(ids).logits
        torch.testing.assert_close(ours.eval()(ids).logits, expected, atol=2e-5, rtol=0)
    assert size == sum(value.numel() * 2 for value in theirs.state_dict().values())
    assert 0.3 < float(expected.std()) < 30  # numbers that a gate can judge


def test_it_measures_and_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large, "CACHE", tmp_path)
    assert large.main(["--shape", "apertus-tiny", "--steps", "3"]) == 0
    told = capsys.readouterr().out
    for part in ("loading", "first pass", "GiB", "tokens/s"):
        assert part in told
    assert not [*tmp_path.iterdir()]


def test_no_speed_where_logits_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large, "CACHE", tmp_path)
    for error in (0.5, float("nan")):
        found = large.Large(1.0, 1.0, 1, 1, 1, error, 0.01, None)
        monkeypatch.setattr(large, "measure", lambda *given, found=found: found)
        assert large.main(["--shape", "apertus-tiny"]) == 1
        told = capsys.readouterr().out
        assert "gate" in told and "tokens/s" not in told
