"""Times of every op over small cases of the registry: ``pytest bench --benchmark-only``.

The CPU kernels stand beside the reference. Nothing is asserted about a time; parity is what tests/
are about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from bench.small import elements, small_cases
from fastbert import kernels
from fastbert.kernels import native
from fastbert.ops import REGISTRY
from fastbert.ops._op import Arguments

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

BACKENDS = ("cpu", "reference")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CASES = 3


def _cases() -> Iterator[Any]:
    for name, op in REGISTRY.items():
        for dtype_name, dtype in DTYPES.items():
            for case, arguments in small_cases(op, dtype, _CASES):
                yield pytest.param(name, arguments, id=f"{name}-{case}-{dtype_name}")


def _call(backend: str, op: str, arguments: Arguments) -> Callable[[], object]:
    """Return a call of an op; a weight is packed outside of it, as a layer keeps it."""
    if backend == "reference":
        return partial(REGISTRY[op].reference, **arguments)
    packer = kernels.packer(backend, op)
    if packer is not None:
        weight = arguments["weight" if op == "linear" else "qweight"]
        arguments = arguments | {"packed": packer(weight)}
    return partial(kernels.kernel(backend, op), **arguments)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread, since a second one takes longer to wake than most of these calls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "arguments"), list(_cases()))
def test_op(benchmark: Any, op: str, arguments: Arguments, backend: str) -> None:
    """Time one call of an op."""
    if backend == "cpu" and native.reason() is not None:
        pytest.skip(str(native.reason()))
    benchmark.group = op
    benchmark.extra_info["elements"] = elements(arguments)
    call = _call(backend, op, arguments)
    with torch.inference_mode():
        benchmark(call)
