"""docs/decoders.md runs as it stands, on a small Apertus in the place of the published ones."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import fastbert

PAGE = Path(__file__).parents[1] / "docs" / "decoders.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="run from a checkout")
NAME = "swiss-ai/Apertus-8B"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("apertus")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate([*specials, *letters])}, []))
    backend.add_special_tokens(specials)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = fastbert.ApertusConfig(
        vocab_size=len(letters) + 4,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.25,
    )
    fastbert.ApertusForCausalLM(config).save_pretrained(path)
    return path


def run(number: int, folder: Path) -> dict[str, Any]:
    text = PAGE.read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[number]
    names: dict[str, Any] = {}
    exec(compile(code.replace(f'"{NAME}"', repr(str(folder))), str(PAGE), "exec"), names)
    return names


def test_the_documented_examples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(0, folder)
    assert "Plants create energy through a process known as" in capsys.readouterr().out
    assert names["pipe"].model.dtype is torch.bfloat16
    names = run(1, folder)
    assert names["generate_ids"].shape == (1, 60)
    assert names["text"].startswith(names["prompt"])
    assert run(2, folder)["configuration"].hidden_size == 64


def test_the_command(folder: Path) -> None:
    (line,) = re.findall(r"^echo .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    said, _, called = line.partition(" | ")
    words = shlex.split(called.replace(NAME, str(folder)))
    text = shlex.split(said)[1]
    assert words[0] == "fastbert"
    ran = subprocess.run(
        [sys.executable, "-m", *words], input=f"{text}\n".encode(), capture_output=True, check=True
    )
    assert ran.stdout.decode(errors="replace").startswith(text)


def test_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = run(3, folder)["model"]
    assert model.lm_head.qweight.dtype is torch.int8
    assert model.model.embed_tokens.weight.dtype is torch.bfloat16


def test_a_cache_of_ones_own(folder: Path) -> None:
    names = run(4, folder)
    prompt = names["inputs"].input_ids.shape[1]
    assert names["cache"].get_seq_length() == prompt + 8 <= 64


def test_serving(folder: Path) -> None:
    """Every text is the one that generate() writes of its prompt alone."""
    names = run(5, folder)
    model, tokenizer = names["model"], names["tokenizer"]
    expected = []
    for prompt in ("Plants create energy", "Hey, are you conscious?", "The cat"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        written = model.generate(ids, max_new_tokens=names["longest"])[0, ids.shape[1] :]
        expected.append(prompt + tokenizer.decode(written))
    assert sorted(names["answers"]) == sorted(expected)
