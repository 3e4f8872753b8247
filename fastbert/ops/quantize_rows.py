"""Asymmetric 8-bit quantisation of every row by its own range."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastbert.ops._op import FLOATS, Arguments, Case, Mutation, Op, Tolerance, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.operands import Target, by_rows, operand, two_dimensional

LEVELS = 255


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute q with x ~ scale * (q - zero_point), per row; all in float32.

    lo = min(0, min(x)), hi = max(0, max(x)), scale = (hi - lo) / 255 (1 where that is 0),
    zero_point = round(-lo / scale), q = clamp(round(x / scale) + zero_point, 0, 255), rounding to
    nearest even. Zero is always represented exactly. A row with a NaN gets scale NaN, so that
    whatever is computed from it is NaN too.

    Args:
        x: (rows, K), floating.

    Returns:
        q uint8 (rows, K), scale float32 (rows,), zero_point int32 (rows,).
    """
    values = x.detach().to(torch.float32)
    zero = values.new_zeros(values.shape[0], 1)
    bounded = torch.cat([values, zero], dim=1)
    low, high = bounded.amin(dim=1), bounded.amax(dim=1)
    scale = (high - low) / LEVELS
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-low / scale).nan_to_num(0.0, 0.0, 0.0)
    quantised = torch.round(values / scale[:, None]).nan_to_num(0.0, 0.0, 0.0)
    quantised = (quantised + zero_point[:, None]).clamp(0, LEVELS)
    return quantised.to(torch.uint8), scale, zero_point.to(torch.int32)


class QuantizeOperands(NamedTuple):
    """Checked operands of `quantize_rows`.

    Attributes:
        code: of the dtype.
        rows, width: shape of x.
        x: by rows.
    """

    code: int
    rows: int
    width: int
    x: Tensor


def check(target: Target, x: Tensor) -> QuantizeOperands:
    """Return the operands of `quantize_rows`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "quantize_rows"
    x, code = operand(op, "x", x, target)
    rows, width = two_dimensional(op, "x", x)
    return QuantizeOperands(code, rows, width, by_rows(x))


def fake(*, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty results."""
    rows = x.shape[0]
    return (
        x.new_empty(x.shape, dtype=torch.uint8),
        x.new_empty(rows, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.int32),
    )


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return None


def _make(
    dtype: torch.dtype, *, rows: int, inner: int, std: float = 1.0, mean: float = 0.0
) -> Arguments:
    return {"x": Sampler(rows * 1009 + inner, dtype).normal(rows, inner, std=std, mean=mean)}


def _make_ties(dtype: torch.dtype) -> Arguments:
    # Range -128..127: the scale is 1, and every value is half-way between two integers.
    row = torch.arange(-128, 127) + 0.5
    return {"x": torch.cat([row, torch.tensor([-128.0, 127.0])]).repeat(2, 1).to(dtype)}


def _make_flat(dtype: torch.dtype) -> Arguments:
    x = torch.zeros(4, 19)
    x[1], x[2], x[3, 4] = 3.0, -3.0, 1e-6
    return {"x": x.to(dtype)}


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    for rows, inner in [
        (0, 8),
        (1, 1),
        (2, 7),
        (3, 8),
        (1, 9),
        (4, 15),
        (2, 16),
        (3, 17),
        (5, 768),
    ]:
        yield Case(f"{rows}x{inner}", partial(_make, rows=rows, inner=inner))
    yield Case("positive", partial(_make, rows=5, inner=131, std=0.1, mean=5.0))
    yield Case("negative", partial(_make, rows=5, inner=131, std=0.1, mean=-5.0))
    yield Case("skewed", partial(_make, rows=7, inner=64, mean=1.5))
    yield Case("ties", _make_ties)
    yield Case("flat", _make_flat)


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values = x.to(torch.float32)
    bounded = torch.cat([values, values.new_zeros(values.shape[0], 1)], dim=1)
    low, high = bounded.amin(1), bounded.amax(1)
    scale = (high - low) / LEVELS
    return values, low, torch.where(scale == 0, torch.ones_like(scale), scale)


def _half_away(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, low, scale = _parts(x)
    zero_point = torch.round(-low / scale)
    ratio = values / scale[:, None]
    rounded = torch.sign(ratio) * torch.floor(ratio.abs() + 0.5) + zero_point[:, None]
    return rounded.clamp(0, LEVELS).to(torch.uint8), scale, zero_point.to(torch.int32)


def _truncated(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, low, scale = _parts(x)
    zero_point = torch.round(-low / scale)
    out = torch.trunc(values / scale[:, None]) + zero_point[:, None]
    return out.clamp(0, LEVELS).to(torch.uint8), scale, zero_point.to(torch.int32)


def _zero_left_out(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if x.shape[0] == 0:
        return quantize_rows(x)
    values = x.to(torch.float32)
    low = values.amin(1)
    scale = (values.amax(1) - low) / LEVELS
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-low / scale)
    out = torch.round(values / scale[:, None]) + zero_point[:, None]
    return out.clamp(0, LEVELS).to(torch.uint8), scale, zero_point.to(torch.int32)


def _symmetric(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values = x.to(torch.float32)
    scale = values.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    out = torch.round(values / scale) + 128
    zero_point = torch.full((x.shape[0],), 128, dtype=torch.int32)
    return out.clamp(0, LEVELS).to(torch.uint8), scale[:, 0], zero_point


def _whole_tensor(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    if rows == 0:
        return quantize_rows(x)
    flat, scale, zero_point = quantize_rows(x.reshape(1, -1))
    return flat.reshape(x.shape), scale.expand(rows).clone(), zero_point.expand(rows).clone()


OP = Op(
    name="quantize_rows",
    reference=quantize_rows,
    check=check,
    fake=fake,
    supports=supports,
    # Every step is one correctly rounded float32 operation, so nothing but equality is right.
    tolerances={dtype: Tolerance(0.0, 0.0) for dtype in FLOATS},
    cases=cases,
    mutations=(
        Mutation("ties rounded away from zero", _half_away),
        Mutation("truncated, not rounded", _truncated),
        Mutation("range that leaves zero out", _zero_left_out),
        Mutation("symmetric range", _symmetric),
        Mutation("one scale for the whole tensor", _whole_tensor),
    ),
    differentiable=False,
)
