"""What all tests share: the instruction sets of this machine, and cases by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastbert.kernels import native

ISAS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set; one that this machine lacks is skipped by name."""
    reason = native.reason()
    if reason is not None:
        pytest.fail(reason)
    if request.param not in native.usable_isas():
        pytest.skip(f"this machine has no {request.param}")
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
