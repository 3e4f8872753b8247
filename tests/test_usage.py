"""docs/usage.md runs as it stands, on a small CamemBERT in the place of the published ones."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastbert
from fastbert.layers.linear import Int8Linear
from fastbert.tools import cli

# Files of tests are imported by their paths, so their helpers are found through this one's.
sys.path.append(str(Path(__file__).parent))

import small_models

PAGE = Path(__file__).parents[1] / "docs" / "usage.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="run from a checkout")
IDS = ("camembert-base", "almanach/camembert-large", "kakaobrain/align-base")
IDS += ("cross-encoder/ms-marco-MiniLM-L6-v2",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = (tmp_path_factory.mktemp(name) for name in ("camembert-base", "vocabularies"))
    return small_models.camembert(*folders, initializer_range=0.25)


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(code: str, folder: Path) -> dict[str, object]:
    for name in IDS:
        code = code.replace(f'"{name}"', repr(str(folder)))
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_pipeline(checkpoint: Path) -> None:
    names = run(blocks()[0], checkpoint)
    answers = names["pipeline"]("Le camembert est un délicieux fromage <mask>.")  # type: ignore
    assert len(answers) == 5 and set(answers[0]) == {"score", "token", "token_str", "sequence"}
    assert names["pipeline"].model.dtype is torch.float16  # type: ignore[attr-defined]


def test_model_and_tokenizer(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(blocks()[1], checkpoint)
    best = fastbert.pipeline("fill-mask", model=checkpoint)(
        "Le camembert est un délicieux fromage <mask>.", top_k=1
    )
    assert names["predicted_token_id"].tolist() == [best[0]["token"]]  # type: ignore[attr-defined]
    assert f"The predicted token is: {best[0]['token_str']}" in capsys.readouterr().out


def test_images_and_texts(tmp_path: Path) -> None:
    vision = {"width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": 64}
    vision |= {"in_channels": [32], "out_channels": [32], "kernel_sizes": [3], "strides": [2]}
    vision |= {"num_block_repeats": [1], "expand_ratios": [6]}
    text = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    text["num_attention_heads"] = 2
    config = fastbert.AlignConfig(text_config=text, vision_config=vision, projection_dim=16)
    fastbert.AlignModel(config).save_pretrained(tmp_path)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "cat",
        "dog",
        "this",
        "is",
        "photo",
        "of",
        ".",
    ]
    fastbert.AlignProcessor(
        fastbert.EfficientNetImageProcessor(size=32),
        fastbert.BertTokenizer(vocab={word: index for index, word in enumerate(words)}),
    ).save_pretrained(tmp_path)
    names = run(blocks()[2], tmp_path)
    assert names["probabilities"].shape == (1, 2)  # type: ignore[attr-defined]
    assert {answer["label"] for answer in names["answers"]} == {"cat", "dog"}  # type: ignore


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str], str], tuple[int, str, str]]:
    """(words, a line of text) -> status, output and errors; test_cli.py starts processes for it."""

    def run(words: list[str], line: str) -> tuple[int, str, str]:
        given = tmp_path / "given.txt"
        given.write_text(f"{line}\n", encoding="utf-8")
        capsys.readouterr()
        with given.open(encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return cli.main(words), *capsys.readouterr()

    return run


def test_command_line(checkpoint: Path, command: Any) -> None:
    (line,) = re.findall(r"^echo .*fastbert run.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    said, _, called = line.partition(" | ")
    words = shlex.split(called.replace(IDS[0], str(checkpoint)))
    text = shlex.split(said)[1]
    assert words[0] == "fastbert"
    status, out, errors = command(words[1:], text)
    assert status == 0, errors
    answers = json.loads(out)
    assert answers == fastbert.pipeline("fill-mask", model=checkpoint)(text)


def test_eight_bits(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(blocks()[3], checkpoint)
    assert isinstance(names["model"].roberta.encoder.layer[1].output.dense, Int8Linear)  # type: ignore
    assert "The predicted token is:" in capsys.readouterr().out


def test_generation(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(blocks()[4], checkpoint)
    assert capsys.readouterr().out.startswith("Le camembert")


def test_parts_of_your_own(tmp_path: Path) -> None:
    config = fastbert.CamembertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=2,
    )
    fastbert.CamembertForSequenceClassification(config).save_pretrained(tmp_path)
    model = run(blocks()[5], tmp_path)["model"]
    logits = model(torch.tensor([[0, 7, 2]])).logits  # type: ignore[operator]
    assert logits.shape == (1, 5)


def test_sentences(checkpoint: Path) -> None:
    names = run(blocks()[7], checkpoint)
    assert names["scores"].shape == (1, 2)  # type: ignore[attr-defined]
    assert names["bits"].shape == (1, 2)  # type: ignore[attr-defined]
    assert names["tokens"].shape[1] == 32  # type: ignore[attr-defined]


def test_pairs_of_sentences(checkpoint: Path, tmp_path: Path) -> None:
    config = fastbert.AutoConfig.from_pretrained(checkpoint, num_labels=1)
    fastbert.CamembertForSequenceClassification(config).save_pretrained(tmp_path)
    fastbert.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    names = run(blocks()[8], tmp_path)
    assert names["scores"].shape == (2,)  # type: ignore[attr-defined]
    assert names["best"][0]["corpus_id"] in (0, 1)  # type: ignore[index]
    assert names["small"].max_length == 64  # type: ignore[attr-defined]


def test_every_block_is_run() -> None:
    assert len(blocks()) == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(checkpoint: Path, command: Any) -> None:
    with pytest.raises(ValueError, match=r"cuda:0.*no CUDA device.*device=-1"):
        fastbert.pipeline("fill-mask", model=checkpoint, device=0)
    with pytest.raises(ValueError, match="no CUDA device"):
        fastbert.AutoModel.from_pretrained(checkpoint, device="cuda")
    with pytest.raises(ValueError, match="no CUDA device"):
        fastbert.AutoModel.from_pretrained(checkpoint, device_map="cuda:1")
    words = ["run", "--task", "fill-mask", "--device", "0", "--model", str(checkpoint)]
    status, _, errors = command(words, "<mask>")
    assert status == 2
    (told,) = errors.splitlines()
    assert told.startswith("fastbert: cuda:0") and "no CUDA device" in told
    assert fastbert.pipeline("fill-mask", model=checkpoint, device="-1").model.device.type == "cpu"
