"""A gemm of 8-bit weights and rows quantised on the way in (W8A8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
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
from fastbert.ops.linear import SIZES
from fastbert.ops.operands import (
    Target,
    by_rows,
    matrix,
    operand,
    two_dimensional,
    vector,
    weight_rows,
)
from fastbert.ops.quantize_rows import quantize_rows


def widened(x: Tensor, factor: Tensor | None, repeated: Tensor | None) -> Tensor:
    """Return what int8_linear quantises: x * factor in float32, some columns once more behind it.

    Args:
        x: (rows, K), floating.
        factor: float32 (K,) or None.
        repeated: int32 (repeats,), columns of x, or None.

    Returns:
        (rows, K + repeats): float32 (or float64, for such x) where there is a factor, else x.dtype.
    """
    if factor is not None:
        x = x.to(torch.promote_types(x.dtype, torch.float32)) * factor
    if repeated is not None and repeated.numel():
        x = torch.cat([x, x.index_select(1, repeated)], dim=1)
    return x


def int8_linear(
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
    """Compute activation(scale * weight_scale * ((q - zero_point) @ qweight.T) + bias) + residual.

    q, scale and zero_point are `quantize_rows(widened(x, factor, repeated))`: with a factor, rows
    are quantised after they were multiplied by it (the weights were divided by it), and repeated
    columns stand once more behind the others (a weight too large for 8 bits is the sum of its
    copies). The integer product is exact: no partial sum exceeds K * 255 * 128, which int32 holds
    up to K = 65 793. Everything after it is float32 or better and rounded once to x.dtype.

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
        (rows, N), x.dtype. Rounding has no derivative: the gradient with respect to x and
        weight_scale is that of the product without it (straight through).
    """
    dtype, x = x.dtype, widened(x, factor, repeated)
    quantised, scale, zero_point = quantize_rows(x)
    compute = torch.promote_types(x.dtype, torch.float32)
    # float64 holds these integers and their sums exactly, and has a fast matrix product.
    centred = quantised.to(torch.float64) - zero_point.to(torch.float64)[:, None]
    product = centred @ qweight.to(torch.float64).t()
    scales = scale.to(compute)[:, None] * weight_scale.detach().to(compute)
    out = product.to(compute) * scales
    if torch.is_grad_enabled() and (x.requires_grad or weight_scale.requires_grad):
        smooth = x.to(compute) @ (qweight.to(compute) * weight_scale.to(compute)[:, None]).t()
        out = out + (smooth - smooth.detach())
    if bias is not None:
        out = out + bias.to(compute)
    out = activate(out, activation)
    if residual is not None:
        out = out + residual.to(compute)
    return out.to(dtype)


class Int8LinearOperands(NamedTuple):
    """Checked operands of `int8_linear`.

    Attributes:
        code: of the dtype of x.
        rows, inner, outer: M, K and N of the gemm; K counts the columns of x.
        x: (rows, inner), by rows.
        qweight: int8 (outer, inner + repeats), laid out as it was given.
        weight_scale: float32 (outer,).
        bias: (outer,) or None.
        activation: as kernels take it.
        residual: (rows, outer), by rows, or None.
        packed: as it was given; a kernel that reads it checks it.
        factor: float32 (inner,) or None.
        repeated: int32 (repeats,) or None.
    """

    code: int
    rows: int
    inner: int
    outer: int
    x: Tensor
    qweight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    activation: KernelActivation
    residual: Tensor | None
    packed: Tensor | None
    factor: Tensor | None
    repeated: Tensor | None


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
    """Return the operands of `int8_linear`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    return operands_of(
        "int8_linear", target, x, qweight, weight_scale, bias, activation, residual, packed,
        factor, repeated,
    )  # fmt: skip


def operands_of(
    op: str,
    target: Target,
    x: Tensor,
    qweight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str | Activation,
    residual: Tensor | None,
    packed: Tensor | None,
    factor: Tensor | None,
    repeated: Tensor | None,
) -> Int8LinearOperands:
    """Return the checked operands of an op over int8 weights, named in what is raised.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    x, code = operand(op, "x", x, target)
    rows, inner = two_dimensional(op, "x", x)
    dtype, device = x.dtype, x.device
    if factor is not None:
        factor = vector(op, "factor", factor, inner, torch.float32, device)
    repeats = 0
    if repeated is not None:
        repeats = repeated.numel() if isinstance(repeated, Tensor) else 0
        repeated = vector(op, "repeated", repeated, repeats, torch.int32, device)
    outer = weight_rows(op, "qweight", qweight, inner + repeats, torch.int8, device)
    weight_scale = vector(op, "weight_scale", weight_scale, outer, torch.float32, device)
    if bias is not None:
        bias = vector(op, "bias", bias, outer, dtype, device)
    if residual is not None:
        residual = matrix(op, "residual", residual, rows, outer, dtype, device)
    function = kernel_activation(activation)
    return Int8LinearOperands(
        code, rows, inner, outer, by_rows(x), qweight, weight_scale, bias, function, residual,
        packed, factor, repeated,
    )  # fmt: skip


def fake(*, x: Tensor, qweight: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    return x.new_empty((x.shape[0], qweight.shape[0]))


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    # The Plan has the reference compute an activation that kernels do not know.
    return None


def make_arguments(
    dtype: torch.dtype,
    *,
    rows: int,
    inner: int,
    outer: int,
    activation: str = "none",
    bias: bool = True,
    residual: bool = False,
    mean: float = 0.5,
    shift: float = 0.0,
    spread: float = 1.0,
    repeats: int = 0,
    factor: bool = False,
) -> Arguments:
    """Return sample arguments; spread scales the product, shift is the mean of the bias."""
    sample = Sampler(rows * 10007 + inner * 101 + outer, dtype)
    return {
        "x": sample.normal(rows, inner, mean=mean),
        "qweight": sample.int8(outer, inner + repeats),
        # Channels of widely different size, as in trained weights.
        "weight_scale": spread * torch.exp(sample.normal32(outer)) / (73.0 * inner**0.5),
        "bias": sample.normal(outer, std=0.5 * spread, mean=shift) if bias else None,
        "activation": activation,
        "residual": sample.normal(rows, outer) if residual else None,
        "packed": None,
        # Over two orders of magnitude, as between outliers and the rest.
        "factor": torch.exp(1.5 * sample.normal32(inner)) if factor else None,
        "repeated": (torch.arange(repeats) * 5 % inner).to(torch.int32) if repeats else None,
    }


def _make_extreme(dtype: torch.dtype, *, sign: int) -> Arguments:
    # Every product is the largest there is: pairs of them do not fit into 16 bits.
    sample = Sampler(5, dtype)
    inner, outer = 259, 35
    qweight = torch.full((outer, inner), 127 * sign, dtype=torch.int8)
    qweight[::2] = -128
    return {
        "x": sample.uniform(6, inner, low=3.0, high=3.1),
        "qweight": qweight,
        "weight_scale": torch.full((outer,), 1e-4),
        "bias": None,
        "activation": "none",
        "residual": None,
        "packed": None,
        "factor": None,
        "repeated": None,
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    for index, (rows, inner, outer) in enumerate(SIZES):
        make = partial(make_arguments, rows=rows, inner=inner, outer=outer)
        yield Case(f"plain-{rows}x{inner}x{outer}", partial(make, bias=index % 2 == 0))
        yield Case(f"fused-{rows}x{inner}x{outer}", partial(make, activation="gelu", residual=True))
    for activation in PLAIN_ACTIVATIONS:
        make = partial(make_arguments, rows=19, inner=129, outer=83, activation=activation)
        yield Case(f"{activation}-residual", partial(make, residual=True))
        yield Case(f"{activation}-tail", partial(make, shift=-2.3, spread=0.05))
    for rows, inner, outer, repeats in ((3, 7, 5, 1), (17, 64, 40, 13), (5, 129, 33, 129)):
        make = partial(make_arguments, rows=rows, inner=inner, outer=outer)
        yield Case(f"factor-{rows}x{inner}x{outer}", partial(make, factor=True))
        yield Case(f"repeated-{rows}x{inner}x{outer}", partial(make, repeats=repeats))
        yield Case(
            f"widened-{rows}x{inner}x{outer}",
            partial(make, factor=True, repeats=repeats, activation="gelu", residual=True),
        )
    for sign in (1, -1):
        yield Case(f"extreme{sign:+d}", partial(_make_extreme, sign=sign))
    for activation in SAMPLE_ACTIVATIONS:
        make = partial(make_arguments, rows=19, inner=129, outer=83, activation=activation)
        yield Case(f"{activation}-residual", partial(make, residual=True))


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def mutated(**arguments: Any) -> Tensor:
        return int8_linear(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _from_product(
    product: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """Return the op with another integer gemm of (q, zero_point, qweight), all float64."""

    def mutated(
        x: Tensor,
        qweight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        activation: str,
        residual: Tensor | None,
        packed: Tensor | None,
        factor: Tensor | None,
        repeated: Tensor | None,
    ) -> Tensor:
        quantised, scale, zero_point = quantize_rows(widened(x, factor, repeated))
        total = product(
            quantised.to(torch.float64), zero_point.to(torch.float64), qweight.to(torch.float64)
        )
        out = (total * scale[:, None]).to(torch.float32) * weight_scale
        out = activate(out if bias is None else out + bias, activation)
        return (out if residual is None else out + residual).to(x.dtype)

    return mutated


def _no_compensation(q: Tensor, zero_point: Tensor, weight: Tensor) -> Tensor:
    return q @ weight.t()


def _saturating_pairs(q: Tensor, zero_point: Tensor, weight: Tensor) -> Tensor:
    # vpmaddubsw adds neighbouring products in 16 bits, saturating. The products are all made here,
    # so large cases are left right.
    if q.shape[0] * weight.numel() > 1_000_000:
        return (q - zero_point[:, None]) @ weight.t()
    products = q[:, None, :] * weight[None, :, :]
    if products.shape[2] % 2:
        products = torch.nn.functional.pad(products, (0, 1))
    even, odd = products[..., ::2], products[..., 1::2]
    pairs = (even + odd).clamp(-32768, 32767)
    out: Tensor = pairs.sum(2) - zero_point[:, None] * weight.sum(1)
    return out


def _signed_activations(q: Tensor, zero_point: Tensor, weight: Tensor) -> Tensor:
    wrapped = torch.where(q > 127, q - 256, q)
    return (wrapped - zero_point[:, None]) @ weight.t()


def _last_inner_ignored(q: Tensor, zero_point: Tensor, weight: Tensor) -> Tensor:
    return (q - zero_point[:, None])[:, :-1] @ weight[:, :-1].t()


def _one_weight_scale(weight_scale: Tensor) -> Tensor:
    return weight_scale.mean().expand_as(weight_scale)


def _shifted(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.roll(1)


def _residual_before(**arguments: Any) -> Tensor:
    residual, activation = arguments.pop("residual"), arguments.pop("activation")
    out = int8_linear(**arguments)
    return activate(out if residual is None else out + residual, activation)


OP = Op(
    name="int8_linear",
    reference=int8_linear,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("u8s8 compensation missing", _from_product(_no_compensation)),
        Mutation("pairs of products saturate at 16 bits", _from_product(_saturating_pairs)),
        Mutation("activations read as signed", _from_product(_signed_activations)),
        Mutation("last of K ignored", _from_product(_last_inner_ignored)),
        Mutation("one weight scale for all channels", _changed(weight_scale=_one_weight_scale)),
        Mutation("weight scales shifted by one", _changed(weight_scale=_shifted)),
        Mutation("factor ignored", _changed(factor=lambda _: None)),
        Mutation("factors shifted by one", _changed(factor=_shifted)),
        Mutation("repeated columns shifted by one", _changed(repeated=_shifted)),
        Mutation("bias dropped", _changed(bias=lambda _: None)),
        Mutation("residual dropped", _changed(residual=lambda _: None)),
        Mutation("residual added before the activation", _residual_before),
        Mutation("tanh-gelu for erf-gelu and the reverse", _changed(activation=other_gelu)),
        Mutation("parameters of the activation ignored", _changed(activation=named)),
    ),
)
