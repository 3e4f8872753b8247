"""linear_w8a16 where its definition says more than a tolerance does.

Rows that are not finite are NaN as a whole, heavy tails keep what 8 bits lose, and bfloat16 rows
are multiplied without any rounding of their own.
"""

from __future__ import annotations

import pytest
import torch

from fastbert import kernels
from fastbert.ops.int8_linear import int8_linear
from fastbert.ops.linear_w8a16 import linear_w8a16


def sample(rows: int, inner: int, outer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + inner + outer)
    x = torch.randn(rows, inner, generator=generator)
    qweight = torch.randint(-128, 128, (outer, inner), generator=generator, dtype=torch.int8)
    return x, qweight, torch.rand(outer, generator=generator) / 100


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_row_that_is_not_finite_is_nan_as_a_whole(bad: float, activation: str, isa: str) -> None:
    x, qweight, scale = sample(5, 67, 41)
    x[2, 66] = bad
    for compute in (linear_w8a16, kernels.kernel("cpu", "linear_w8a16")):
        out = compute(x, qweight, scale, None, activation)
        assert bool(out[2].isnan().all())
        assert bool(out[[0, 1, 3, 4]].isfinite().all())


def test_heavy_tails_keep_what_8_bits_lose(isa: str) -> None:
    x, qweight, scale = sample(4, 1024, 64)
    x = x**3
    exact = linear_w8a16(x.double(), qweight, scale)
    found = kernels.kernel("cpu", "linear_w8a16")(x, qweight, scale)
    error = (found - exact).norm() / exact.norm()
    assert error < 3e-4
    assert error * 30 < (int8_linear(x, qweight, scale) - exact).norm() / exact.norm()


def test_bfloat16_rows_are_exact_down_to_a_127th(isa: str) -> None:
    x, qweight, _ = sample(6, 96, 33)
    x = torch.where(x.abs() < x.abs().amax(1, keepdim=True) / 120, torch.zeros(()), x)
    x, scale = x.bfloat16(), torch.ones(33)
    exact = x.double() @ qweight.double().t()
    # Sums of 96 products with 16 and 8 bits: below 2^24 in high halves, so exact until rounded.
    found = kernels.kernel("cpu", "linear_w8a16")(x, qweight, scale)
    assert torch.equal(found, exact.to(torch.float32).to(torch.bfloat16))


def test_rows_longer_than_integer_sums_are_refused() -> None:
    x, qweight = torch.ones(1, 65794), torch.ones(1, 65794, dtype=torch.int8)
    with pytest.raises(ValueError, match="65793"):
        kernels.kernel("cpu", "linear_w8a16")(x, qweight, torch.ones(1))
