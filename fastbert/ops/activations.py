"""Activations by the names that configuration files use. `gelu` is the exact erf form.

To add one: its formula in `ACTIVATIONS`, or in `_PARAMETRISED` where it has numbers of its own; for
kernels a code in `KERNEL_ACTIVATIONS` and csrc/common/types.h, and one case in csrc/cpu/vec/math.h,
csrc/cuda/row.cuh and triton_kernels/_common.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# What kernels compute; the codes are those of csrc/common/types.h.
KERNEL_ACTIVATIONS: dict[str, int] = {
    "none": 0,
    "gelu": 1,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "silu": 4,
    "swish": 4,
    "tanh": 5,
    "leaky_relu": 6,
    "quick_gelu": 7,
}
# Those of them without parameters.
PLAIN_ACTIVATIONS = tuple(KERNEL_ACTIVATIONS)[:-2]
# Sample calls of the others.
SAMPLE_ACTIVATIONS = ("leaky_relu", "leaky_relu(0.2)", "quick_gelu", "quick_gelu(0.7)")
# Numbers that kernels take beside the code.
MOST_PARAMETERS = 2


@dataclass(frozen=True)
class Activation:
    """An activation whose formula has numbers of its own, for use in place of a name.

    Attributes:
        name: as in a configuration file.
        parameters: the numbers, in the order of the formula; () takes the usual ones.
    """

    name: str
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Write the activation as `parse` reads it: "leaky_relu(0.2)", or the bare name."""
        numbers = ", ".join(map(repr, self.parameters))
        return f"{self.name}({numbers})" if numbers else self.name

    @staticmethod
    @functools.cache
    def parse(text: str) -> Activation:
        """Return the activation that a name, with or without parameters in parentheses, stands for.

        Raises:
            ValueError: for parameters that are no numbers.
        """
        name, bracket, inside = text.partition("(")
        if not bracket:
            return Activation(text)
        try:
            numbers = tuple(float(number) for number in inside.removesuffix(")").split(","))
        except ValueError:
            raise ValueError(
                f"The activation {text!r} has parameters that are no numbers; write it like "
                "'leaky_relu(0.2)'."
            ) from None
        return Activation(name, numbers)


class KernelActivation(NamedTuple):
    """An activation as kernels take it: its code and up to two numbers, 0 where it has fewer."""

    code: int
    a: float
    b: float


IDENTITY = KernelActivation(0, 0.0, 0.0)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_clipped(x: Tensor) -> Tensor:
    return torch.clamp(F.gelu(x), -10.0, 10.0)


def _gelu_accurate(x: Tensor) -> Tensor:
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3))
    return 0.5 * x * (1.0 + torch.tanh(inner))


def _gelu_fast(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def _gelu_python(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _quick_gelu(x: Tensor, scale: float = 1.702) -> Tensor:
    return x * torch.sigmoid(scale * x)


def _laplace(x: Tensor) -> Tensor:
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1.0 + torch.erf((x - mean) / (deviation * math.sqrt(2.0))))


def _relu2(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


def _identity(x: Tensor) -> Tensor:
    return x


# Formulas of x and of the parameters, if any.
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "none": _identity,
    "linear": _identity,
    "gelu": F.gelu,
    "gelu_python": _gelu_python,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_accurate": _gelu_accurate,
    "gelu_fast": _gelu_fast,
    "gelu_10": _gelu_clipped,
    "laplace": _laplace,
    "quick_gelu": _quick_gelu,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "relu": F.relu,
    "relu2": _relu2,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


# The usual parameters of those that have any.
_USUAL: dict[str, tuple[float, ...]] = {"leaky_relu": (0.01,), "quick_gelu": (1.702,)}


def activate(x: Tensor, activation: str | Activation) -> Tensor:
    """Return the activation of every element of x, in x.dtype.

    Raises:
        ValueError: when no activation has that name, or it has another number of parameters.
    """
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return ACTIVATIONS[activation](x)
    known = _known(activation)
    return ACTIVATIONS[known.name](x, *known.parameters)


def named(activation: str | Activation) -> str:
    """Return the name of an activation, without parameters."""
    return _given(activation).name


def _given(activation: str | Activation) -> Activation:
    return Activation.parse(activation) if isinstance(activation, str) else activation


def _known(activation: str | Activation) -> Activation:
    """Return an activation that the reference computes, with all its parameters."""
    given = _given(activation)
    if given.name not in ACTIVATIONS:
        raise ValueError(
            f"There is no activation {given.name!r}; the known ones are "
            f"{', '.join(sorted(ACTIVATIONS))}."
        )
    usual = _USUAL.get(given.name, ())
    if given.parameters and len(given.parameters) != len(usual):
        raise ValueError(
            f"The activation {given.name!r} has {len(usual)} parameters, not "
            f"{len(given.parameters)}."
        )
    return Activation(given.name, given.parameters or usual)


@functools.cache
def kernel_activation(activation: str | Activation) -> KernelActivation:
    """Return the code and parameters of an activation that kernels compute.

    Raises:
        ValueError: when kernels do not know it, or it has another number of parameters.
    """
    name = named(activation)
    if name not in KERNEL_ACTIVATIONS:
        raise ValueError(
            f"Kernels do not compute the activation {name!r}; they know "
            f"{', '.join(sorted(KERNEL_ACTIVATIONS))}. Use the reference for this one."
        )
    a, b = (*_known(activation).parameters, 0.0, 0.0)[:MOST_PARAMETERS]
    return KernelActivation(KERNEL_ACTIVATIONS[name], a, b)


def unsupported_activation(activation: str | Activation | None) -> str | None:
    """Return None when kernels compute the activation (or none was named), else the reason."""
    if activation is None or named(activation) in KERNEL_ACTIVATIONS:
        return None
    return f"no kernel computes the activation {named(activation)!r}"
