"""What all tests share: the instruction sets of this machine, and cases by name."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from fastbert.kernels import native

ISAS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")


def pytest_configure() -> None:
    """Say at once what an unbuilt checkout lacks; hundreds of tests would fail for that reason."""
    reason = native.reason()
    if reason is not None:
        raise pytest.UsageError(f"The tests need the kernels: {reason}.")


def pytest_report_header() -> str:
    """Say which kernels are tested: a build may hold fewer instruction sets than there are."""
    held = ", ".join(native.library.build_info()["isas"])
    return f"kernels: {held}; this machine runs {', '.join(native.usable_isas())}"


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leave what is imported out of every later garbage collection.

    torch, transformers and ten thousand tests are a million objects that stay. Each full collection
    went through all of them, and importing them caused many.
    """
    gc.disable()
    yield
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the end of the process see all objects again: triton's bindings count what is left."""
    gc.unfreeze()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set; one that this machine or build lacks is skipped."""
    if request.param not in native.usable_isas():
        held = request.param in native.library.build_info()["isas"]
        pytest.skip(f"this {'machine' if held else 'build'} has no {request.param}")
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let torch, and the kernels after it, use two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
