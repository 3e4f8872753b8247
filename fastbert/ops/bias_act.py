"""Bias and activation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

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
    unsupported_activation,
)
from fastbert.ops.operands import Target, by_rows, operand, two_dimensional, vector


def bias_act(x: Tensor, bias: Tensor | None, activation: str | Activation) -> Tensor:
    """Compute activation(x + bias).

    Args:
        x: (rows, hidden), floating.
        bias: (hidden,), x.dtype, or None.
        activation: "none", "gelu" (exact, erf), "gelu_new" or "gelu_pytorch_tanh", "relu", "silu",
            "tanh", "leaky_relu", "quick_gelu", or one of the latter two with its parameter, as an
            `Activation`; the reference knows the others of `fastbert.ops.activations`.

    Returns:
        (rows, hidden), x.dtype.

    Source: gelu is Hendrycks, Gimpel 2016: x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2))).
    """
    return activate(x if bias is None else x + bias, activation)


class BiasActOperands(NamedTuple):
    """Checked operands of `bias_act`.

    Attributes:
        code: of the dtype.
        rows, width: shape of x.
        x, bias: as for `bias_act`, x by rows.
        activation: as kernels take it.
    """

    code: int
    rows: int
    width: int
    x: Tensor
    bias: Tensor | None
    activation: KernelActivation


def check(
    target: Target, x: Tensor, bias: Tensor | None, activation: str | Activation
) -> BiasActOperands:
    """Return the operands of `bias_act`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "bias_act"
    x, code = operand(op, "x", x, target)
    rows, width = two_dimensional(op, "x", x)
    if bias is not None:
        bias = vector(op, "bias", bias, width, x.dtype, x.device)
    return BiasActOperands(code, rows, width, by_rows(x), bias, kernel_activation(activation))


def fake(*, x: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    return x.new_empty(x.shape)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)


def _make(dtype: torch.dtype, *, rows: int, hidden: int, activation: str, bias: bool) -> Arguments:
    sample = Sampler(rows * 1009 + hidden, dtype)
    return {
        "x": sample.normal(rows, hidden, std=2.0),
        "bias": sample.normal(hidden) if bias else None,
        "activation": activation,
    }


def _make_range(dtype: torch.dtype, *, low: float, high: float, activation: str) -> Arguments:
    x = Sampler(3, dtype).uniform(7, 331, low=low, high=high)
    return {"x": x, "bias": None, "activation": activation}


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    sizes = [(0, 5), (1, 1), (3, 7), (2, 8), (5, 9), (1, 15), (4, 16), (3, 17), (11, 31), (7, 1031)]
    for activation in PLAIN_ACTIVATIONS:
        for index, (rows, hidden) in enumerate(sizes):
            make = partial(
                _make, rows=rows, hidden=hidden, activation=activation, bias=index % 3 != 1
            )
            yield Case(f"{activation}-{rows}x{hidden}", make)
        yield Case(
            f"{activation}-wide", partial(_make_range, low=-15, high=15, activation=activation)
        )
        # Where erf-gelu and tanh-gelu differ most, relative to their value; below -3 the
        # cancellation in 1 + erf hides it.
        yield Case(
            f"{activation}-tail", partial(_make_range, low=-3, high=-2, activation=activation)
        )
        # Near zero an absolute error would go unnoticed among larger values.
        yield Case(
            f"{activation}-small", partial(_make_range, low=-1e-3, high=1e-3, activation=activation)
        )
    for activation in SAMPLE_ACTIVATIONS:
        make = partial(_make, rows=3, hidden=67, activation=activation, bias=True)
        yield Case(f"{activation}-3x67", make)


def other_gelu(activation: str) -> str:
    """Return the gelu that a careless kernel would compute instead of this one."""
    swapped = {"gelu": "gelu_new", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}
    return swapped.get(activation, activation)


def _wrong_gelu(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return bias_act(x, bias, other_gelu(activation))


def _bias_dropped(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return bias_act(x, None, activation)


def _bias_after(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    out = activate(x, activation)
    return out if bias is None else out + bias


def _last_column_kept(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    out = bias_act(x, bias, activation).clone()
    out[:, -1:] = x[:, -1:]
    return out


def _silu_for_gelu(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return bias_act(x, bias, "silu" if activation == "gelu" else activation)


def _parameters_ignored(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return bias_act(x, bias, named(activation))


OP = Op(
    name="bias_act",
    reference=bias_act,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("tanh-gelu for erf-gelu and the reverse", _wrong_gelu),
        Mutation("bias dropped", _bias_dropped),
        Mutation("bias added after the activation", _bias_after),
        Mutation("last column left as it was", _last_column_kept),
        Mutation("silu for gelu", _silu_for_gelu),
        Mutation("parameters of the activation ignored", _parameters_ignored),
    ),
)
