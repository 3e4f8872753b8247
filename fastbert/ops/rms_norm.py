"""Residual and root-mean-square normalisation in one pass over the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.operands import Target, by_rows, matrix, operand, two_dimensional, vector


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute s / sqrt(mean(s^2) + eps) * weight for s = x + residual, and s when it is asked for.

    The mean is float32 or better. With 16 bits the normalised row is rounded before it is
    multiplied by the weight.

    Args:
        x: (..., width), floating; kernels take (rows, width).
        weight: (width,), the gain.
        eps: added to the mean of the squares.
        residual: as x, added before.
        return_sum: also give s, for a residual stream that goes on un-normalised.

    Returns:
        The normalised rows, and s rounded to x.dtype, both of x's shape; s is (0,) without
        return_sum.

    Source: Zhang, Sennrich 2019, "Root mean square layer normalization".
    """
    total = x if residual is None else x + residual
    out = weight * normalised(total, eps)
    if not return_sum:
        return out, x.new_empty(0)
    return out, total.clone() if total is x else total


def normalised(x: Tensor, eps: float) -> Tensor:
    """Divide every row by the root of its mean square + eps, in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RmsNormOperands(NamedTuple):
    """Checked operands of `rms_norm`.

    Attributes:
        code: of the dtype.
        rows, width: shape of x.
        x: (rows, width), by rows.
        residual: (rows, width) by rows, or None.
        weight: (width,), the gain.
        eps: added to the mean of the squares.
        return_sum: whether what is normalised is a result too.
    """

    code: int
    rows: int
    width: int
    x: Tensor
    residual: Tensor | None
    weight: Tensor
    eps: float
    return_sum: bool


def check(
    target: Target,
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    return_sum: bool = False,
) -> RmsNormOperands:
    """Return the operands of `rms_norm`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "rms_norm"
    x, code = operand(op, "x", x, target)
    rows, width = two_dimensional(op, "x", x)
    weight = vector(op, "weight", weight, width, x.dtype, x.device)
    if residual is not None:
        residual = matrix(op, "residual", residual, rows, width, x.dtype, x.device)
    return RmsNormOperands(code, rows, width, by_rows(x), residual, weight, eps, return_sum)


def fake(*, x: Tensor, return_sum: bool = False, **_: object) -> tuple[Tensor, Tensor]:
    """Return empty results."""
    return x.new_empty(x.shape), x.new_empty(x.shape if return_sum else 0)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return None


def _make(
    dtype: torch.dtype,
    *,
    rows: int,
    width: int,
    other: bool = False,
    std: float = 1.0,
    mean: float = 0.0,
    residual: bool = False,
    return_sum: bool = False,
) -> Arguments:
    sample = Sampler(rows * 1009 + width, dtype)
    return {
        "x": sample.normal(rows, width, std=std, mean=mean),
        "weight": sample.around_one(width),
        "eps": 1e-6 if other else 1e-5,
        "residual": sample.normal(rows, width, std=std) if residual else None,
        "return_sum": return_sum,
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    sizes = [(0, 8), (3, 7), (2, 8), (1, 15), (4, 16), (3, 17), (7, 37), (13, 127), (3, 384)]
    for rows, width in [*sizes, (1, 4096), (2, 1031)]:
        make = partial(_make, rows=rows, width=width)
        yield Case(f"plain-{rows}x{width}", make)
        yield Case(f"all-{rows}x{width}", partial(make, residual=True, return_sum=True))
    yield Case("one-column", partial(_make, rows=3, width=1))
    yield Case("sum", partial(_make, rows=5, width=33, return_sum=True))
    # Ordinary rows cannot show a wrong eps or where it stands, these can.
    for other in (False, True):
        make = partial(_make, rows=4, width=96, std=1e-3, other=other)
        yield Case("small-other-eps" if other else "small", make)
    # Ordinary rows hardly show a mean that is taken out.
    yield Case("large-mean", partial(_make, rows=8, width=129, mean=3.0, residual=True))


Rows = Callable[[Tensor, Tensor, float], Tensor]


def _with(norm: Rows) -> Callable[..., tuple[Tensor, Tensor]]:
    def mutated(
        x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, return_sum: bool
    ) -> tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        return norm(total, weight, eps), total if return_sum else x.new_empty(0)

    return mutated


def _centred(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.float32)
    return weight * normalised(wide - wide.mean(-1, keepdim=True), eps).to(x.dtype)


def _eps_outside(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.float32)
    return weight * (wide / (wide.square().mean(-1, keepdim=True).sqrt() + eps)).to(x.dtype)


def _short_row(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.float32)
    mean = wide[:, : max(1, x.shape[1] - 1)].square().mean(-1, keepdim=True)
    return weight * (wide * torch.rsqrt(mean + eps)).to(x.dtype)


def _unit_gain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return normalised(x, eps)


def _gain_plus_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (1 + weight) * normalised(x, eps)


def _other_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * normalised(x, 1e-6 if eps == 1e-5 else 1e-5)


def _narrow_mean(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps).to(torch.bfloat16)
    return weight * (wide * scale).to(x.dtype)


def _without_residual(**arguments: Any) -> tuple[Tensor, Tensor]:
    return rms_norm(**{**arguments, "residual": None})


def _sum_without_residual(**arguments: Any) -> tuple[Tensor, Tensor]:
    out, total = rms_norm(**arguments)
    return out, arguments["x"] if arguments["return_sum"] else total


OP = Op(
    name="rms_norm",
    reference=rms_norm,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("mean taken out", _with(_centred)),
        Mutation("eps outside of the root", _with(_eps_outside)),
        Mutation("wrong eps", _with(_other_eps)),
        Mutation("gain dropped", _with(_unit_gain)),
        Mutation("gain counted from one", _with(_gain_plus_one)),
        Mutation("mean without the last column", _with(_short_row)),
        Mutation("scale rounded to bfloat16", _with(_narrow_mean), (torch.float32, torch.float16)),
        Mutation("residual dropped", _without_residual),
        Mutation("sum returned without the residual", _sum_without_residual),
    ),
)
