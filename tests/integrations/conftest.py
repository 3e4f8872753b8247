"""Helper modules of these tests are imported by name; tiny models need one thread."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "models")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def _little_to_collect() -> None:
    """Each run of a Trainer collects garbage: 0.3 s, unless what is imported is left out.

    Most was left out when the tests were collected (tests/conftest.py), and this adds the rest.
    """
    gc.collect()
    gc.freeze()
