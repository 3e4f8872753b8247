"""What we save, transformers 4.56.2 and 5 load: every class, in shards, with its settings of
generate(); and what they save with those settings, we load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import transformers

import fastbert

HERE = Path(__file__).parent
# The encoder that transformers 4 cannot find in a folder of its own kind is not asked about there.
ASKED = [name for name in oracle.CLASSES if name != "AlignTextModel"]


def save(name: str, folder: Path) -> tuple[list[Any], torch.Tensor]:
    """Save a model with shards and settings; returns the ids to ask about and its answer."""
    _, ours = oracle.pair(name)
    ids = oracle.random_ids()
    if name.endswith("ForMultipleChoice"):
        ids = torch.stack([ids, ids.roll(1, 0)], dim=1)
    if ours.can_generate():
        ours.generation_config = fastbert.GenerationConfig(max_new_tokens=7, pad_token_id=1)
    ours.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    with torch.no_grad():
        return ids.tolist(), ours(ids)[0]


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_transformers_5(name: str, tmp_path: Path) -> None:
    ids, wanted = save(name, tmp_path)
    theirs, report = getattr(transformers, name).from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        got = theirs.eval()(torch.tensor(ids))[0]
    oracle.close(got, wanted, torch.ones(1), oracle.tolerance(name), name)
    if theirs.can_generate():
        assert theirs.generation_config.max_new_tokens == 7
        theirs.generation_config.max_new_tokens = 5
        theirs.save_pretrained(tmp_path / "back", max_shard_size="20KB")
        back = getattr(fastbert, name).from_pretrained(tmp_path / "back")
        assert back.generation_config.max_new_tokens == 5
    assert getattr(fastbert, name)(theirs_config(name, tmp_path)).can_generate() is bool(
        theirs.can_generate()
    )


def theirs_config(name: str, folder: Path) -> Any:
    return getattr(fastbert, f"{oracle.family_of(name)}Config").from_pretrained(folder)


def _old_python() -> str | None:
    """A Python with transformers 4 and torch, where there is one."""
    named = os.environ.get("FASTBERT_V4_PYTHON")
    usual = HERE.parents[1] / ".venv-v4" / "bin" / "python"
    python = named or (str(usual) if usual.exists() else None)
    if python is None or sys.platform == "win32":
        return None
    done = subprocess.run([python, "-c", "import torch, transformers"], capture_output=True)
    return python if done.returncode == 0 else None


def test_transformers_4(tmp_path: Path) -> None:
    python = _old_python()
    if python is None:
        pytest.skip("no transformers 4.56.2 with torch (set FASTBERT_V4_PYTHON, make oracle-v4)")
    wanted = {}
    for name in ASKED:
        ids, wanted[name] = save(name, tmp_path / name)
        asked = json.dumps({"class": name, "ids": ids})
        (tmp_path / name / "inputs.json").write_text(asked)
    command = [python, str(HERE / "oracle_v4.py"), *(str(tmp_path / name) for name in ASKED)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    version, found = json.loads(run.stdout.splitlines()[-1])
    assert version.startswith("4.")
    for name in ASKED:
        got = found[name]
        assert not got["missing"] and not got["unexpected"], name
        values = torch.tensor(got["values"], dtype=torch.float64).reshape(wanted[name].shape)
        oracle.close(values, wanted[name], torch.ones(1), oracle.tolerance(name), name)
        assert got["generation"] in (None, 7), name
    assert {name for name in ASKED if found[name]["generation"]} >= set(oracle.DECODERS)
