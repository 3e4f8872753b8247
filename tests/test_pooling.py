"""Pooling: the native sums have the bits of torch's, and both are the sums."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastbert.embedding import pooling
from fastbert.kernels import kernel, native
from fastbert.ops.segment_sums import segment_sums
from fastbert.runtime.plan import Traits, build_plan, use_backend

BOUNDS = torch.tensor([0, 0, 7, 7, 40, 300])
KERNELS = pytest.mark.skipif(native.reason() is not None, reason="no native library")


@pytest.fixture(params=native.usable_isas() if native.reason() is None else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


def rows_of(columns: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(columns)
    return (torch.randn(300, columns) * 10).to(dtype)


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [0, 1, 15, 16, 33, 127, 128, 384, 769])
def test_native_sums_have_the_bits_of_torch(isa: str, columns: int, dtype: torch.dtype) -> None:
    rows, lengths = rows_of(columns, dtype), pooling._lengths(BOUNDS)
    expected = segment_sums(rows, BOUNDS)
    native_sums = kernel("cpu", "segment_sums")
    assert torch.equal(native_sums(rows, BOUNDS), expected)
    assert torch.equal(native_sums(rows, BOUNDS, lengths), expected / lengths[:, None])
    exact = torch.stack(
        [rows[begin:end].double().sum(0) for begin, end in pairwise(BOUNDS.tolist())]
    )
    torch.testing.assert_close(expected.double(), exact, rtol=0, atol=1e-2)


@KERNELS
def test_rows_may_be_views() -> None:
    rows = rows_of(40, torch.float32)
    for view in (rows[:, 3:20], rows[::3], rows.t()[:, :7], rows[:1].expand(9, 40)):
        bounds = torch.tensor([0, 2, view.shape[0]])
        expected = segment_sums(view.contiguous(), bounds)
        assert torch.equal(kernel("cpu", "segment_sums")(view, bounds), expected)


@KERNELS
def test_wrong_arguments_get_a_sentence() -> None:
    rows, sums = rows_of(8, torch.float32), kernel("cpu", "segment_sums")
    with pytest.raises(ValueError, match=r"bounds\[1\] is 301"):
        sums(rows, torch.tensor([0, 301]))
    with pytest.raises(ValueError, match="divisors has shape"):
        sums(rows, BOUNDS, torch.ones(4))
    with pytest.raises(TypeError, match="bounds"):
        sums(rows, BOUNDS.int())
    with pytest.raises(TypeError, match="int64"):
        sums(rows.long(), BOUNDS)


def test_gradients_flow_through_sums() -> None:
    plan = build_plan(Traits(), "cpu", torch.float32)
    for mode in ("mean", "mean_sqrt_len_tokens", "weightedmean"):
        rows = rows_of(5, torch.float32).requires_grad_()
        pooling.pool(rows, BOUNDS, [mode], plan).sum().backward()
        assert rows.grad is not None, mode
        assert rows.grad.abs().sum() > 0, mode


@KERNELS
def test_the_plan_chooses_who_pools() -> None:
    rows, bounds = rows_of(5, torch.float32), BOUNDS
    chosen = build_plan(Traits(), "cpu", torch.float32).choice("segment_sums")
    assert chosen.backend == "cpu"
    with use_backend("reference"):
        plan = build_plan(Traits(), "cpu", torch.float32)
    assert plan.choice("segment_sums").backend == "reference"
    assert any(line.startswith("segment_sums") for line in plan.lines())
    pooled = pooling.pool(rows, bounds, ["mean"], plan)
    assert torch.equal(pooled, segment_sums(rows, bounds, pooling._lengths(bounds)))
