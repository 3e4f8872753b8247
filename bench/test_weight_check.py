"""The cost of the check for changed weights before each pass: ``pytest bench --benchmark-only``.

The model has BERT-base's shapes and random weights. The check runs over and over, as in passes of a
tiny model, and with empty caches, as behind a pass that read more weights than they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastbert
from bench.caches import Flush
from fastbert.kernels import native

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")
pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
_COLD_ROUNDS = 50


def weight_check(model: Any) -> Callable[[], bool]:
    """Return the check that stands before a pass of a model whose weights are packed."""
    with torch.inference_mode():
        model(torch.tensor([[101, 2000, 102]]))
    snapshot = model.encoder_cache.view(model)
    return lambda: bool(snapshot.holds(contents=True))


@pytest.fixture(scope="module")
def check() -> Callable[[], bool]:
    """Make a BERT-base, and return its check."""
    torch.manual_seed(0)
    found = weight_check(fastbert.BertModel(fastbert.BertConfig()).eval())
    assert found(), "the weights of the model did not change, and the check says that they did"
    return found


def test_weight_check_warm(benchmark: Any, check: Callable[[], bool]) -> None:
    """Time the check when it has just run."""
    benchmark.group = "weight check, BERT-base"
    benchmark(check)


def test_weight_check_cold(benchmark: Any, check: Callable[[], bool]) -> None:
    """Time the check with empty caches."""
    benchmark.group = "weight check, BERT-base"
    flush = Flush()
    benchmark.pedantic(check, setup=flush, rounds=_COLD_ROUNDS, warmup_rounds=1)
