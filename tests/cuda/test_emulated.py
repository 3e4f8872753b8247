"""The CUDA row kernels run on the CPU, through their own bindings, against the reference.

The device code is compiled as C++ with `emulated/emulation.h` in place of the CUDA runtime:
indices, bounds, alignment variants, reductions and arithmetic are the lines that nvcc compiles too.
What only hardware shows (ordering, races, its own exp and erf) waits for test_on_device.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from fastbert import kernels
from fastbert.ops import REGISTRY, Case, Op
from fastbert.testing import misaligned, parity, poisoned_empty

pytestmark = pytest.mark.usefixtures("on_the_cpu")
OPS = ("embed_layer_norm", "quantize_rows", "add_layer_norm", "bias_act", "act_layer_norm")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run(op: str, *args: Any, **kwargs: Any) -> Any:
    # Not through kernels.kernel, which would remember the patched library.
    return kernels.bound("cuda", op)(*args, **kwargs)


CASES = [
    pytest.param(
        REGISTRY[name], case, dtype, id=f"{name}-{case.name}-{str(dtype).removeprefix('torch.')}"
    )
    for name in OPS
    for case in REGISTRY[name].cases()
    for dtype in DTYPES
]


@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_parity(op: Op, case: Case, dtype: torch.dtype) -> None:
    with poisoned_empty():
        verdict = parity(op, partial(run, op.name), case.make(dtype), dtype)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 768, 1024, 1032, 2049, 5000, 16384])
def test_widths_and_alignments(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x, residual = torch.randn(5, width).to(dtype), torch.randn(5, width).to(dtype)
    weight, bias = torch.randn(width).to(dtype), torch.randn(width).to(dtype)
    arguments: dict[str, Any] = {
        "x": x, "weight": weight, "bias": bias, "eps": 1e-12, "residual": residual,
        "x_bias": bias, "return_sum": True,
    }  # fmt: skip
    op = REGISTRY["add_layer_norm"]
    aligned = run("add_layer_norm", **arguments)
    with poisoned_empty():
        verdict = parity(op, partial(run, "add_layer_norm"), arguments, dtype)
        assert verdict.ok, verdict.reason
        # The narrow form reads the same row in the same order.
        narrow = run("add_layer_norm", **(arguments | {"residual": misaligned(residual)}))
    assert all(torch.equal(a, b) for a, b in zip(aligned, narrow, strict=True))
    for one, other in zip(
        run("quantize_rows", x), REGISTRY["quantize_rows"].reference(x), strict=True
    ):
        assert torch.equal(one, other)


def test_a_row_is_the_same_in_any_batch() -> None:
    x, vector = torch.randn(9, 768), torch.randn(768)
    together = run("add_layer_norm", x, vector, vector, 1e-12)[0]
    for row in range(9):
        alone = run("add_layer_norm", x[row : row + 1], vector, vector, 1e-12)[0]
        assert torch.equal(alone, together[row : row + 1])


def test_ids_without_a_row_give_nan_rows() -> None:
    vector = torch.ones(8)
    ids = torch.tensor([0, 7, -1, 8, 2**40, 3])
    out = run("embed_layer_norm", ids, torch.randn(8, 8), vector, vector, 1e-5)
    assert out.isnan().all(1).tolist() == [False, False, True, True, True, False]


def test_nan_and_infinity() -> None:
    x = torch.randn(3, 40)
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    expected = REGISTRY["quantize_rows"].reference(x)
    for one, other in zip(run("quantize_rows", x), expected, strict=True):
        assert torch.equal(torch.nan_to_num(one.double(), -1), torch.nan_to_num(other.double(), -1))
    vector = torch.ones(40)
    out = run("add_layer_norm", x, vector, vector, 1e-5)[0]
    assert out[:2].isnan().all() and not out[2].isnan().any()
    assert run("bias_act", x, None, "relu")[0, 1].isnan()
