"""LayerNorm of an activation: the transform of a language-model head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastbert.ops._op import STANDARD_TOLERANCES, Arguments, Case, Mutation, Op, Traits
from fastbert.ops._sample import Sampler
from fastbert.ops.activations import (
    PLAIN_ACTIVATIONS,
    SAMPLE_ACTIVATIONS,
    Activation,
    kernel_activation,
    named,
    unsupported_activation,
)
from fastbert.ops.add_layer_norm import (
    RowNormOperands,
    layer_norm,
    one_pass_layer_norm,
    wrong_eps,
)
from fastbert.ops.bias_act import bias_act, other_gelu
from fastbert.ops.operands import Target, by_rows, operand, two_dimensional, vector


def act_layer_norm(
    x: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    activation: str | Activation,
) -> Tensor:
    """Compute LayerNorm(activation(x + bias)), the maths of `bias_act` and `add_layer_norm`.

    Args:
        x: (rows, hidden), floating.
        bias: (hidden,), x.dtype, or None; added before the activation.
        weight: (hidden,), x.dtype, gain of the LayerNorm.
        ln_bias: (hidden,), x.dtype, of the LayerNorm.
        eps: added to the variance.
        activation: as for `bias_act`.

    Returns:
        (rows, hidden), x.dtype.
    """
    return layer_norm(bias_act(x, bias, activation), weight, ln_bias, eps)


def check(
    target: Target,
    x: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    activation: str | Activation,
) -> RowNormOperands:
    """Return the operands of `act_layer_norm`.

    Raises:
        TypeError, ValueError: for operands that kernels do not take, with the reason.
    """
    op = "act_layer_norm"
    x, code = operand(op, "x", x, target)
    rows, width = two_dimensional(op, "x", x)
    dtype, device = x.dtype, x.device
    weight = vector(op, "weight", weight, width, dtype, device)
    ln_bias = vector(op, "ln_bias", ln_bias, width, dtype, device)
    if bias is not None:
        bias = vector(op, "bias", bias, width, dtype, device)
    function = kernel_activation(activation)
    return RowNormOperands(
        code, rows, width, by_rows(x), bias, function, None, weight, ln_bias, eps, False
    )


def fake(*, x: Tensor, **_: object) -> Tensor:
    """Return an empty result."""
    return x.new_empty(x.shape)


def supports(backend: str, traits: Traits) -> str | None:
    """Return None, or why the backend's kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)


def _make(
    dtype: torch.dtype,
    *,
    rows: int,
    hidden: int,
    activation: str = "gelu",
    bias: bool = True,
    eps: float,
    std: float = 1.0,
    mean: float = 0.0,
) -> Arguments:
    sample = Sampler(rows * 1009 + hidden, dtype)
    return {
        "x": sample.normal(rows, hidden, std=std, mean=mean),
        "bias": sample.normal(hidden, std=std) if bias else None,
        "weight": sample.around_one(hidden),
        "ln_bias": sample.normal(hidden, std=0.5),
        "eps": eps,
        "activation": activation,
    }


def cases() -> Iterator[Case]:
    """Yield the sample calls."""
    make = partial(_make, eps=1e-12)
    sizes = [
        (0, 8),
        (3, 7),
        (2, 8),
        (5, 9),
        (1, 15),
        (4, 16),
        (3, 17),
        (7, 37),
        (5, 768),
        (2, 1031),
    ]
    for rows, hidden in sizes:
        yield Case(f"gelu-{rows}x{hidden}", partial(make, rows=rows, hidden=hidden))
    for activation in PLAIN_ACTIVATIONS:
        yield Case(
            f"{activation}-no-bias",
            partial(make, rows=3, hidden=129, activation=activation, bias=False, eps=1e-5),
        )
        # Rows whose values all lie where the gelus differ most, relative to their spread.
        yield Case(
            f"{activation}-tail",
            partial(
                make, rows=5, hidden=384, activation=activation, bias=False, std=0.3, mean=-2.3
            ),
        )
    for eps in (1e-12, 1e-5):
        yield Case(
            f"low-variance-{eps}",
            partial(make, rows=4, hidden=768, activation="relu", std=1e-3, eps=eps),
        )
    yield Case("large-mean", partial(make, rows=8, hidden=768, activation="none", mean=100.0))
    for activation in SAMPLE_ACTIVATIONS:
        yield Case(f"{activation}", partial(make, rows=3, hidden=129, activation=activation))


def _changed(**changes: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def mutated(**arguments: Any) -> Tensor:
        return act_layer_norm(
            **{name: changes.get(name, lambda v: v)(value) for name, value in arguments.items()}
        )

    return mutated


def _one_pass(
    x: Tensor, bias: Tensor | None, weight: Tensor, ln_bias: Tensor, eps: float, activation: str
) -> Tensor:
    return one_pass_layer_norm(bias_act(x, bias, activation), weight, ln_bias, eps)


def _activation_after(
    x: Tensor, bias: Tensor | None, weight: Tensor, ln_bias: Tensor, eps: float, activation: str
) -> Tensor:
    return bias_act(layer_norm(bias_act(x, bias, "none"), weight, ln_bias, eps), None, activation)


OP = Op(
    name="act_layer_norm",
    reference=act_layer_norm,
    check=check,
    fake=fake,
    supports=supports,
    tolerances=STANDARD_TOLERANCES,
    cases=cases,
    mutations=(
        Mutation("tanh-gelu for erf-gelu and the reverse", _changed(activation=other_gelu)),
        Mutation("parameters of the activation ignored", _changed(activation=named)),
        Mutation("wrong eps", _changed(eps=wrong_eps)),
        Mutation("bias dropped", _changed(bias=lambda _: None)),
        Mutation("LayerNorm bias dropped", _changed(ln_bias=torch.zeros_like)),
        Mutation("gain dropped", _changed(weight=torch.ones_like)),
        Mutation("one-pass variance", _one_pass),
        Mutation("activation after the LayerNorm", _activation_after),
    ),
)
