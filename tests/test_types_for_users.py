"""A program's mistakes in the public names are found by a type checker, and nothing else is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastbert

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastbert"

PROGRAM = """
from typing import assert_type

import torch

import fastbert
from fastbert import BertConfig, BertForSequenceClassification, BertModel, SentenceEncoder


class Mine(BertModel):
    pass


def right(path: str, ids: torch.Tensor) -> None:
    config = BertConfig(hidden_size=64, num_attention_heads=4)
    assert_type(BertConfig.from_pretrained(path), BertConfig)
    assert_type(Mine.from_pretrained(path, dtype=torch.bfloat16, backend="cpu").eval(), Mine)
    assert_type(
        Mine.from_pretrained(path, output_loading_info=True), tuple[Mine, dict[str, list[str]]]
    )
    assert_type(BertForSequenceClassification(config).to("cpu"), BertForSequenceClassification)
    assert_type(fastbert.explain(BertModel(config)), str)
    encoder = SentenceEncoder.from_pretrained(path, quantization="int8")
    print(encoder.encode(["one", "two"]).shape, fastbert.__version__)
    print(fastbert.pipeline("ner", path)("Marie lives in Paris."))
    with fastbert.use_backend("reference"):
        print(BertModel(config)(ids).last_hidden_state)


def wrong(model: BertModel, encoder: SentenceEncoder, ids: torch.Tensor) -> None:
    fastbert.NoSuchThing  # error: attr-defined
    encoder.encod("text")  # error: attr-defined
    encoder.encode(3)  # error: call-overload
    BertConfig(hidden_size="64")  # error: arg-type
    model.forward(ids, attention_msk=ids)  # error: call-arg
    BertModel.from_pretrained(3)  # error: call-overload
    from fastbert import BertModle  # error: attr-defined
"""


def test_type_checkers_see_the_public_names() -> None:
    """The imports under TYPE_CHECKING are _EXPORTS, name for name."""
    seen: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastbert."):
            room = (node.module or "").removeprefix("fastbert.")
            assert all(alias.asname == alias.name for alias in node.names), f"not exported: {room}"
            seen[room] = tuple(sorted(alias.name for alias in node.names))
    assert seen == {room: tuple(sorted(names)) for room, names in fastbert._EXPORTS.items()}
    names = [name for room in seen.values() for name in room]
    assert sorted(fastbert.__all__) == sorted(["__version__", *names])


def test_every_public_name_exists() -> None:
    for name in fastbert.__all__:
        assert getattr(fastbert, name) is not None


def test_the_planted_mistakes_are_found(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    assert (PACKAGE / "py.typed").exists()
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
            # Only the program is judged, as it is where the package is installed.
            *("--follow-imports=silent", "--ignore-missing-imports"),
            *(f"--cache-dir={ROOT / '.mypy_cache' / 'users'}", str(path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if " error: " in line:
            found[int(line.split(":")[1])] = line.rsplit("[", 1)[1].rstrip("]")
    planted = {
        number: line.rsplit(" error: ", 1)[1]
        for number, line in enumerate(PROGRAM.splitlines(), start=1)
        if "# error: " in line
    }
    assert found == planted, done.stdout + done.stderr
