"""A gemm with bias, activation and residual in its epilogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.activations import (
    PLAIN_ACTIVATIONS,
    SAMPLE_ACTIVATIONS,
    Activation,
    KernelActivation,
    activate,
    kernel_activation,
    named,
)
from fastbert.ops.bias_act import other_gelu
from fastbert.ops.operands import (
    Target,
    by_rows,
    matrix,
    operand,
    refuse_mixture,
    two_dimensional,
    vector,
    weight_rows,
)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | Activation = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Compute activation(x @ weight.T + bias) + residual, accumulated in float32 or better.

    Args:
        x: (rows, K), floating.
        weight: (N, K), x.dtype.
        bias: (N,), x.dtype, or None.
        activation: as for `bias_act`.
        residual: (rows, N), x.dtype, or None.
        packed: uint8, the same weight in a kernel's own order (`linear_prepack`); a kernel that
            takes it reads it in place of weight, the reference does not look at it.

    Returns:
        (rows, N), x.dtype.

    Raises:
        TypeError: for operands of several precisions, unless autocast converts them.
    """
    if x.dtype is not weight.dtype or (bias is not None and bias.dtype is not weight.dtype):
        refuse_mixture("linear", x, weight=weight, bias=bias)
    out = activate(F.linear(x, weight, bias), activation)
    return out if residual is None else out + residual


class LinearOperands(NamedTuple):
    """Checked operands of `linear`.

    Attributes:
        code: of the dtype.
        rows, inner, outer: M, K and N of the gemm.
        x: (rows, inner), by rows.
        weight: (outer, inner), laid out as it was given.
        bias: (outer,) or None.
        activation: as kernels take it.
        residual: (rows, outer), by rows, or None.
        packed: as it was given; a kernel that reads it checks it.
    """

    code: int
    rows: int
    inner: int
    outer: int
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    activation: KernelActivation
    residual: Tensor | None
    packed: Tensor | None


def check(
    target: Target,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | Activation = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> LinearOperands:
    """Return the operands of `linear`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "linear"
    x, code = operand(op, "x", x, target)
    rows, inner = two_dimensional(op, "x", x)
    dtype, device = x.dtype, x.device
    outer = weight_rows(op, "weight", weight, inner, dtype, device)
    if bias is not None:
        bias = vector(op, "bias", bias, outer, dtype, device)
    if residual is not None:
        residual = matrix(op, "residual", residual, rows, outer, dtype, device)
    function = kernel_activation(activation)
    return LinearOperands(
        code, rows, inner, outer, by_rows(x), weight, bias, function, residual, packed
    )


def fake(*, x: Tensor, weight: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    return x.new_empty((x.shape[0], weight.shape[0]))


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    # The Plan has the reference compute an activation that kernels do not know.
    return None


# (rows, K, N): empty, single, around the lanes and the tiles of every kernel, primes, real widths.
SIZES = (
    (0, 16, 16),
    (1, 1, 1),
    (1, 7, 9),
    (2, 8, 8),
    (3, 9, 7),
    (4, 15, 17),
    (5, 16, 16),
    (6, 17, 15),
    (7, 31, 33),
    (8, 32, 32),
    (12, 33, 31),
    (13, 63, 65),
    (16, 64, 64),
    (17, 65, 63),
    (31, 127, 97),
    (33, 131, 129),
    (1, 384, 1536),
    (9, 768, 101),
    (65, 512, 48),
    (3, 3072, 67),
)


def _make(
    dtype: torch.dtype,
    *,
    rows: int,
    inner: int,
    outer: int,
    activation: str = "none",
    bias: bool = True,
    residual: bool = False,
    shift: float = 0.0,
    spread: float = 1.0,
) -> Arguments:
    sample = Sampler(rows * 10007 + inner * 101 + outer, dtype)
    return {
        "x": sample.normal(rows, inner),
        "weight": sample.normal(outer, inner, std=spread * inner**-0.5),
        "bias": sample.normal(outer, std=0.5 * spread, mean=shift) if bias else None,
        "activation": activation,
        "residual": sample.normal(rows, outer) if residual else None,
        "packed": None,
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    for index, (rows, inner, outer) in enumerate(SIZES):
        make = partial(_make, rows=rows, inner=inner, outer=outer)
        yield Case(f"plain-{rows}x{inner}x{outer}", partial(make, bias=index % 2 == 0))
        yield Case(f"fused-{rows}x{inner}x{outer}", partial(make, activation="gelu", residual=True))
    for activation in PLAIN_ACTIVATIONS:
        make = partial(_make, rows=19, inner=129, outer=83, activation=activation)
        yield Case(f"{activation}-residual", partial(make, residual=True))
        # Results around -2.3, where the gelus differ most relative to their value.
        yield Case(f"{activation}-tail", partial(make, shift=-2.3, spread=0.1))
    for activation in SAMPLE_ACTIVATIONS:
        make = partial(_make, rows=19, inner=129, outer=83, activation=activation)
        yield Case(f"{activation}-residual", partial(make, residual=True))


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def mutated(**arguments: Any) -> Tensor:
        return linear(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _residual_before(**arguments: Any) -> Tensor:
    residual, activation = arguments.pop("residual"), arguments.pop("activation")
    out = linear(**arguments)
    return activate(out if residual is None else out + residual, activation)


def _last_inner_ignored(**arguments: Any) -> Tensor:
    x = arguments.pop("x").clone()
    x[:, -1:] = 0
    return linear(x, **arguments)


def _last_inner_of_odd(**arguments: Any) -> Tensor:
    # Half-precision dot products take pairs of K: a kernel may forget the last of an odd K.
    return (_last_inner_ignored if arguments["x"].shape[1] % 2 else linear)(**arguments)


def _last_row_of_previous(**arguments: Any) -> Tensor:
    out = linear(**arguments).clone()
    if out.shape[0] > 1:
        out[-1] = out[-2]
    return out


def _narrow_operands(**arguments: Any) -> Tensor:
    for name in ("x", "weight"):
        arguments[name] = arguments[name].to(torch.bfloat16).to(arguments[name].dtype)
    return linear(**arguments)


def _narrow_sums(**arguments: Any) -> Tensor:
    x, weight = arguments["x"].to(torch.float32), arguments["weight"].to(torch.float32)
    total = torch.zeros(x.shape[0], weight.shape[0])
    for start in range(0, x.shape[1], 32):
        total = total + x[:, start : start + 32] @ weight[:, start : start + 32].t()
        total = total.to(torch.bfloat16).to(torch.float32)
    bias, residual = arguments["bias"], arguments["residual"]
    out = activate(total if bias is None else total + bias, arguments["activation"])
    return (out if residual is None else out + residual).to(arguments["x"].dtype)


OP = Op(
    name="linear",
    reference=linear,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("bias dropped", _changed(bias=lambda _: None)),
        Mutation("residual dropped", _changed(residual=lambda _: None)),
        Mutation("residual added before the activation", _residual_before),
        Mutation("tanh-gelu for erf-gelu and the reverse", _changed(activation=other_gelu)),
        Mutation("parameters of the activation ignored", _changed(activation=named)),
        Mutation("activation left out", _changed(activation=lambda _: "none")),
        Mutation("last of K ignored", _last_inner_ignored),
        Mutation("last of an odd K ignored", _last_inner_of_odd),
        Mutation("last row repeats the one before", _last_row_of_previous),
        Mutation("operands rounded to bfloat16", _narrow_operands, (torch.float32, torch.float16)),
        Mutation("partial sums rounded to bfloat16", _narrow_sums),
    ),
)
