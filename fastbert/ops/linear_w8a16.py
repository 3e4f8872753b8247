"""A gemm of 8-bit weights and rows that keep 16 bits (W8A16)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastbert.ops import int8_linear as w8a8
from fastbert.ops._op import Arguments, Case, Mutation, Op, Tolerance
from fastbert.ops.activations import Activation, activate, named
from fastbert.ops.bias_act import other_gelu
from fastbert.ops.int8_linear import Int8LinearOperands, widened
from fastbert.ops.operands import Target

# What rows keep: a kernel may use 2^15 levels on each side of 0.
_LEVELS = 32639


def linear_w8a16(
    x: Tensor,
    qweight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str | Activation = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
    factor: Tensor | None = None,
    repeated: Tensor | None = None,
) -> Tensor:
    """Compute activation(rows @ (qweight * weight_scale).T + bias) + residual.

    rows is `widened(x, factor, repeated)`. The weights are those of `int8_linear`, and the rows are
    not quantised to 8 bits: for models whose activations have heavy tails, and where reading
    weights is what takes the time. A kernel may round a row to 16 bits by its own range, so that a
    value is off by at most 1/32639 of the row's largest (bfloat16 values above 1/256 of it are kept
    exactly), and adds integers without error; K is at most 65 793 there. A row that holds a NaN or
    an infinity has no finite result.

    Args:
        x: (rows, K), floating.
        qweight: int8 (N, K + repeats).
        weight_scale: float32 (N,).
        bias: (N,), x.dtype, or None.
        activation: as for `bias_act`.
        residual: (rows, N), x.dtype, or None.
        packed: uint8, qweight in a kernel's own order; the reference does not look at it.
        factor: float32 (K,), finite and not 0, or None.
        repeated: int32 (repeats,), each from 0 to K - 1, or None.

    Returns:
        (rows, N), x.dtype.
    """
    dtype, x = x.dtype, widened(x, factor, repeated)
    compute = torch.promote_types(x.dtype, torch.float32)
    weight = qweight.to(compute) * weight_scale.to(compute)[:, None]
    out = x.to(compute) @ weight.t()
    if bias is not None:
        out = out + bias.to(compute)
    out = activate(out, activation)
    if residual is not None:
        out = out + residual.to(compute)
    return out.to(dtype)


def check(
    target: Target,
    x: Tensor,
    qweight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str | Activation = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
    factor: Tensor | None = None,
    repeated: Tensor | None = None,
) -> Int8LinearOperands:
    """Return the operands of `linear_w8a16`, which are those of `int8_linear`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    return w8a8.operands_of(
        "linear_w8a16", target, x, qweight, weight_scale, bias, activation, residual, packed,
        factor, repeated,
    )  # fmt: skip


def _heavy(dtype: torch.dtype, **sizes: Any) -> Arguments:
    # As behind xIELU: a few values far larger than the others, of which 8 bits would leave little.
    arguments = w8a8.make_arguments(dtype, **sizes)
    arguments["x"] = (arguments["x"].to(torch.float32) ** 3).to(dtype)
    return arguments


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    yield from w8a8.cases()
    for rows, inner, outer in ((1, 7, 9), (2, 131, 64), (7, 1031, 35), (3, 3072, 67)):
        make = partial(_heavy, rows=rows, inner=inner, outer=outer, mean=0.0)
        yield Case(f"heavy-{rows}x{inner}x{outer}", partial(make, bias=False))
    for rows in (1, 2, 3, 7, 8, 13, 14, 15, 16, 17):
        yield Case(f"rows-{rows}", partial(_heavy, rows=rows, inner=53, outer=37, mean=0.0))


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def mutated(**arguments: Any) -> Tensor:
        return linear_w8a16(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return high and low halves of the rows' levels, and the value of a level."""
    values = x.to(torch.float64)
    largest = values.abs().amax(1, keepdim=True) if x.shape[1] else values.new_zeros(x.shape[0], 1)
    step = torch.where(largest > 0, largest, torch.ones_like(largest)) / _LEVELS
    levels = torch.round(values / step) + 32896
    high = torch.floor(levels / 256)
    return high - 128, levels - 256 * high - 128, step


def _joined(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return the op over levels that are joined from their halves in another way."""

    def mutated(**arguments: Any) -> Tensor:
        dtype, x = arguments["x"].dtype, arguments["x"]
        x = widened(x, arguments.pop("factor"), arguments.pop("repeated"))
        high, low, step = _halves(x)
        arguments["x"] = join(high, low) * step
        return linear_w8a16(**arguments).to(dtype)

    return mutated


def _weighted(
    of_high: int, of_low: int, high_zero: int = 0, low_zero: int = 0
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda high, low: of_high * (high + high_zero) + of_low * (low + low_zero)


def _low_unsigned(high: Tensor, low: Tensor) -> Tensor:
    return 256 * high + torch.where(low < 0, low + 256, low)


def _narrow(high: Tensor, low: Tensor) -> Tensor:
    return torch.round((256 * high + low) / 256) * 256


def _halves_of_the_next_row(high: Tensor, low: Tensor) -> Tensor:
    return 256 * high + low.roll(1, 0)


def _residual_before(**arguments: Any) -> Tensor:
    residual, activation = arguments.pop("residual"), arguments.pop("activation")
    out = linear_w8a16(**arguments)
    return activate(out if residual is None else out + residual, activation)


_WIDE = (torch.float32, torch.float16)

OP = Op(
    name="linear_w8a16",
    reference=linear_w8a16,
    check=check,
    fake=w8a8.fake,
    supports=w8a8.supports,
    # Rounding to 16 bits: 0.29 of a step, whose rows reach from 16 320 to 32 639 of them; a normal
    # row of some hundred values has its largest at three times its size, and a heavy one of 3072 at
    # forty times. Beside it stands the reference's own error in float32, which says nothing here.
    tolerances={
        torch.float32: Tolerance(6e-4, 1e9),
        torch.bfloat16: Tolerance(8e-3),
        torch.float16: Tolerance(1e-3, 4.0),
    },
    cases=cases,
    mutations=(
        Mutation("low half ignored", _joined(_weighted(256, 0))),
        Mutation("rows of 8 bits", _joined(_narrow), _WIDE),
        Mutation("halves swapped", _joined(_weighted(1, 256))),
        Mutation("low half without its weight", _joined(_weighted(256, 256))),
        Mutation("zero point of the low half left out", _joined(_weighted(256, 1, low_zero=128))),
        Mutation("zero point of the high half left out", _joined(_weighted(256, 1, high_zero=128))),
        Mutation("low half unsigned", _joined(_low_unsigned)),
        Mutation("low halves of another row", _joined(_halves_of_the_next_row)),
        Mutation("weight scales shifted by one", _changed(weight_scale=lambda s: s.roll(1))),
        Mutation("factor ignored", _changed(factor=lambda _: None)),
        Mutation("bias dropped", _changed(bias=lambda _: None)),
        Mutation("residual dropped", _changed(residual=lambda _: None)),
        Mutation("residual added before the activation", _residual_before),
        Mutation("tanh-gelu for erf-gelu and the reverse", _changed(activation=other_gelu)),
        Mutation("parameters of the activation ignored", _changed(activation=named)),
    ),
)
