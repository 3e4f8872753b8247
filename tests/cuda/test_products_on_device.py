"""Every form of the CUDA products on a GPU: what the emulation cannot say of them.

Forms (families and tiles, csrc/cuda/gemm/gemm.h) are forced; parity of what the Plan takes, streams
and graphs are in test_on_device.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert import kernels
from fastbert.kernels.cuda import _gemm
from fastbert.ops import REGISTRY
from fastbert.testing import parity, poisoned_empty

if not torch.cuda.is_available():
    pytest.skip("this machine has no CUDA device", allow_module_level=True)
if (reason := importlib.import_module("fastbert.kernels.cuda").unavailable()) is not None:
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
HOPPER = torch.cuda.get_device_capability(DEVICE)[0] == 9
HALVES = (torch.float16, torch.bfloat16)
FMA, MMA, WGMMA = 1, 80, 90
# (rows, K, N): real widths, ragged ends in every direction, one row, many tiles for every block.
SHAPES = [(16384, 768, 3072), (4099, 3072, 768), (1000, 1024, 1000), (1, 768, 768), (131, 80, 72)]


def forms(op: str, dtype: torch.dtype, inner: int) -> Iterator[tuple[int, int]]:
    if op == "linear" and dtype == torch.float32:
        families = [FMA]
    else:
        families = [MMA, WGMMA] if HOPPER else [MMA]
    for family in families:
        yield from ((family, tile) for tile in (0, 1))
        if family == WGMMA and op == "int8_linear" and inner <= 1024:
            yield family, 2


def run(op: str, form: tuple[int, int], **arguments: Any) -> Tensor:
    before, _gemm.FORM = _gemm.FORM, form
    try:
        with poisoned_empty():
            result: Tensor = kernels.kernel("cuda", op)(**arguments)
        return result
    finally:
        _gemm.FORM = before


def sample(op: str, dtype: torch.dtype, rows: int, inner: int, outer: int) -> dict[str, Any]:
    generator = torch.Generator(DEVICE).manual_seed(rows + inner + outer)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, generator=generator)

    arguments: dict[str, Any] = {
        "x": normal(rows, inner).to(dtype),
        "bias": normal(outer).to(dtype),
        "activation": "gelu",
        "residual": normal(rows, outer).to(dtype),
    }
    if op == "linear":
        return arguments | {"weight": (normal(outer, inner) / inner**0.5).to(dtype)}
    weight = torch.randint(
        -128, 128, (outer, inner), device=DEVICE, dtype=torch.int8, generator=generator
    )
    scale = torch.rand(outer, device=DEVICE, generator=generator) / (73 * inner**0.5)
    return arguments | {"qweight": weight, "weight_scale": scale}


CASES = [
    pytest.param(op, dtype, shape, id=f"{op}-{str(dtype).removeprefix('torch.')}-{shape}")
    for op in ("linear", "int8_linear")
    for dtype in (torch.float32, *HALVES)
    for shape in SHAPES
]


@pytest.mark.parametrize(("op", "dtype", "shape"), CASES)
def test_every_form(op: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    arguments = sample(op, dtype, *shape)
    # A thousand rows are enough to judge by; the last ones have the ragged tile.
    judged = arguments | {name: arguments[name][-1000:] for name in ("x", "residual")}
    by_family: dict[int, Tensor] = {}
    for form in forms(op, dtype, shape[1]):
        result = run(op, form, **arguments)
        verdict = parity(REGISTRY[op], lambda result=result, **_: result[-1000:], judged, dtype)
        assert verdict.ok, (form, verdict.reason)
        # The tiles of a family give the same bits, or a row would depend on how many there are:
        # wgmma of 64, 128 and 256 columns must add k in one order.
        assert torch.equal(by_family.setdefault(form[0], result), result), form
    if op == "int8_linear":
        assert all(torch.equal(result, by_family[MMA]) for result in by_family.values())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_integer_sums_are_exact(dtype: torch.dtype) -> None:
    # Whole numbers from -100 to 155 have scale 1 and zero point 100.
    x = torch.randint(-100, 156, (700, 1024), device=DEVICE)
    x[:, 0], x[:, 1] = -100, 155
    weight = torch.randint(-128, 128, (520, 1024), device=DEVICE)
    weight[5], weight[6] = -128, 127
    exact = (x.double() @ weight.double().t()).float().to(dtype)
    ones = torch.ones(520, device=DEVICE)
    for form in forms("int8_linear", dtype, 1024):
        got = run(
            "int8_linear", form, x=x.to(dtype), qweight=weight.to(torch.int8), weight_scale=ones
        )
        assert torch.equal(got, exact), form


@pytest.mark.parametrize("op", ["linear", "int8_linear"])
def test_the_same_bits_every_time(op: str) -> None:
    # A race shows as a result that changes: many blocks, several tiles each, again and again.
    for dtype in HALVES:
        arguments = sample(op, dtype, 9000, 768, 1536)
        for form in forms(op, dtype, 768):
            first = run(op, form, **arguments)
            for _ in range(20):
                assert torch.equal(run(op, form, **arguments), first), form


def test_requantised_results() -> None:
    arguments = sample("int8_linear", torch.bfloat16, 600, 768, 1000) | {"residual": None}
    wide = {"x": arguments["x"].float(), "bias": arguments["bias"].float()}
    real = run("int8_linear", (0, -1), **arguments | wide)
    scale = real.abs().amax(1) / 100
    zero_point = torch.randint(0, 256, (600,), device=DEVICE, dtype=torch.int32)
    steps = torch.round(real / scale[:, None]) + zero_point[:, None]
    expected = steps.clamp(0, 255).to(torch.uint8)
    got = run("int8_linear", (0, -1), **arguments | wide, requantize=(scale, zero_point))
    assert torch.equal(got, expected)
