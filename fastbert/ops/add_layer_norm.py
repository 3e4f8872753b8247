"""Bias, residual and LayerNorm in one pass over the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.activations import IDENTITY, KernelActivation
from fastbert.ops.operands import (
    Target,
    by_rows,
    matrix,
    operand,
    refuse_mixture,
    two_dimensional,
    vector,
)


def add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    x_bias: Tensor | None = None,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute LayerNorm(x + x_bias + residual), and that sum when it is asked for.

    y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias with the biased variance, per row;
    statistics are float32 or better, the variance not from E[s^2] - E[s]^2.

    Args:
        x: (rows, hidden), floating.
        weight: (hidden,), x.dtype, the gain.
        bias: (hidden,), x.dtype, added after it.
        eps: added to the variance.
        residual: (rows, hidden), x.dtype.
        x_bias: (hidden,), x.dtype.
        return_sum: also give s, for a residual stream that goes on un-normalised.

    Returns:
        (rows, hidden) and s rounded to x.dtype, of shape (rows, hidden), or (0,) without
        return_sum.

    Source: Ba, Kiros, Hinton 2016, "Layer normalization".
    """
    total = x
    if x_bias is not None:
        total = total + x_bias
    if residual is not None:
        total = total + residual
    out = layer_norm(total, weight, bias, eps)
    if not return_sum:
        return out, x.new_empty(0)
    return out, total.clone() if total is x else total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise over the last dimension; where x and weight differ in dtype, in the wider one.

    Of a narrower x, as autocast makes it and norms kept in float32 meet it, torch rounds the result
    to x.dtype on a CPU, and to none elsewhere.

    Raises:
        TypeError: for a weight that is narrower than x, or differs from the bias, as torch does.
    """
    wide = torch.promote_types(x.dtype, weight.dtype)
    if wide is not weight.dtype or bias.dtype is not weight.dtype:
        refuse_mixture("layer norm", x, weight=weight, bias=bias)
    out = F.layer_norm(x.to(wide), (x.shape[-1],), weight, bias, eps)
    return out.to(x.dtype) if x.device.type == "cpu" else out


class RowNormOperands(NamedTuple):
    """Checked operands of `add_layer_norm` and `act_layer_norm`.

    Attributes:
        code: of the dtype.
        rows, width: shape of x.
        x: (rows, width), by rows.
        x_bias: (width,) or None, added before the activation.
        activation: as kernels take it.
        residual: (rows, width) by rows or None, added after the activation.
        weight, bias, eps: of the LayerNorm.
        return_sum: whether what is normalised is a result too.
    """

    code: int
    rows: int
    width: int
    x: Tensor
    x_bias: Tensor | None
    activation: KernelActivation
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    eps: float
    return_sum: bool


def check(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    x_bias: Tensor | None = None,
    return_sum: bool = False,
) -> RowNormOperands:
    """Return the operands of `add_layer_norm`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "add_layer_norm"
    x, code = operand(op, "x", x, target)
    rows, width = two_dimensional(op, "x", x)
    dtype, device = x.dtype, x.device
    weight = vector(op, "weight", weight, width, dtype, device)
    bias = vector(op, "bias", bias, width, dtype, device)
    if residual is not None:
        residual = matrix(op, "residual", residual, rows, width, dtype, device)
    if x_bias is not None:
        x_bias = vector(op, "x_bias", x_bias, width, dtype, device)
    return RowNormOperands(
        code, rows, width, by_rows(x), x_bias, IDENTITY, residual, weight, bias, eps, return_sum
    )


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
    hidden: int,
    eps: float,
    std: float = 1.0,
    mean: float = 0.0,
    residual: bool = False,
    x_bias: bool = False,
    return_sum: bool = False,
) -> Arguments:
    sample = Sampler(rows * 1009 + hidden, dtype)
    return {
        "x": sample.normal(rows, hidden, std=std, mean=mean),
        "weight": sample.around_one(hidden),
        "bias": sample.normal(hidden, std=0.5),
        "eps": eps,
        "residual": sample.normal(rows, hidden, std=std) if residual else None,
        "x_bias": sample.normal(hidden, std=std) if x_bias else None,
        "return_sum": return_sum,
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    make = partial(_make, eps=1e-12)
    sizes = [(0, 8), (3, 7), (2, 8), (5, 9), (1, 15), (4, 16), (3, 17), (2, 31), (7, 37), (13, 127)]
    for rows, hidden in [*sizes, (3, 384), (5, 768), (2, 1031)]:
        yield Case(f"plain-{rows}x{hidden}", partial(make, rows=rows, hidden=hidden, eps=1e-5))
        yield Case(
            f"all-{rows}x{hidden}",
            partial(make, rows=rows, hidden=hidden, residual=True, x_bias=True, return_sum=True),
        )
    yield Case("residual", partial(make, rows=6, hidden=97, residual=True))
    yield Case("bias", partial(make, rows=6, hidden=97, x_bias=True, return_sum=True))
    # One column: the variance is 0, eps alone keeps the result finite.
    yield Case("one-column", partial(make, rows=3, hidden=1, eps=1e-5))
    # Ordinary rows cannot show a wrong eps (2e-6 of error for 1e-6 in place of 1e-12), these can.
    for eps in (1e-12, 1e-6, 1e-5):
        yield Case(f"low-variance-{eps}", partial(make, rows=4, hidden=768, std=1e-3, eps=eps))
    # Ordinary rows cannot show a one-pass variance either (5e-2 of error at mean / std = 100).
    yield Case("large-mean", partial(make, rows=8, hidden=768, mean=100.0))
    yield Case("large-mean-sum", partial(make, rows=4, hidden=129, mean=100.0, residual=True))


def wrong_eps(eps: float) -> float:
    """Return what a kernel with a fixed eps would use."""
    return 1e-6 if eps == 1e-12 else 1e-12


def one_pass_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm with E[x^2] - E[x]^2 in float32."""
    values = x.to(torch.float32)
    mean = values.mean(-1, keepdim=True)
    variance = ((values * values).mean(-1, keepdim=True) - mean * mean).clamp(min=0)
    return ((values - mean) / torch.sqrt(variance + eps) * weight + bias).to(x.dtype)


def _sum_of(x: Tensor, residual: Tensor | None, x_bias: Tensor | None) -> Tensor:
    total = x if x_bias is None else x + x_bias
    return total if residual is None else total + residual


def _normalise(
    norm: Callable[[Tensor, Tensor, Tensor, float], Tensor],
) -> Callable[..., tuple[Tensor, Tensor]]:
    def mutated(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        residual: Tensor | None = None,
        x_bias: Tensor | None = None,
        return_sum: bool = False,
    ) -> tuple[Tensor, Tensor]:
        total = _sum_of(x, residual, x_bias)
        return norm(total, weight, bias, eps), total if return_sum else x.new_empty(0)

    return mutated


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    def mutated(**arguments: Any) -> tuple[Tensor, Tensor]:
        return add_layer_norm(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _variance(values: Tensor, divisor: int) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    return (centred * centred).sum(-1, keepdim=True) / divisor


def _unbiased(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    values = x.to(torch.float32)
    variance = _variance(values, max(1, x.shape[1] - 1))
    centred = values - values.mean(-1, keepdim=True)
    return (centred / torch.sqrt(variance + eps) * weight + bias).to(x.dtype)


def _rounded_statistics(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    values = x.to(torch.float32)
    mean = values.mean(-1, keepdim=True).to(torch.bfloat16).to(torch.float32)
    rstd = torch.rsqrt(_variance(values, x.shape[1]) + eps)
    rstd = rstd.to(torch.bfloat16).to(torch.float32)
    return ((values - mean) * rstd * weight + bias).to(x.dtype)


def _short_row(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    values = x.to(torch.float32)
    part = values[:, : max(1, x.shape[1] - 1)]
    variance = _variance(part, part.shape[1])
    centred = values - part.mean(-1, keepdim=True)
    return (centred / torch.sqrt(variance + eps) * weight + bias).to(x.dtype)


def _sum_without_residual(**arguments: Any) -> tuple[Tensor, Tensor]:
    out, total = add_layer_norm(**arguments)
    return out, arguments["x"] if arguments["return_sum"] else total


OP = Op(
    name="add_layer_norm",
    reference=add_layer_norm,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("wrong eps", _changed(eps=wrong_eps)),
        Mutation("bias dropped", _changed(bias=torch.zeros_like)),
        Mutation("gain dropped", _changed(weight=torch.ones_like)),
        Mutation("residual dropped", _changed(residual=lambda _: None)),
        Mutation("x_bias dropped", _changed(x_bias=lambda _: None)),
        Mutation("one-pass variance", _normalise(one_pass_layer_norm)),
        Mutation("unbiased variance", _normalise(_unbiased)),
        Mutation("statistics rounded to bfloat16", _normalise(_rounded_statistics)),
        Mutation("statistics without the last column", _normalise(_short_row)),
        Mutation("sum returned without bias and residual", _sum_without_residual),
    ),
)
