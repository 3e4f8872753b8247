"""Activations by the names configuration files use. `gelu` is the exact erf form."""

from __future__ import annotations

import math
from collections.abc import Callable

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
}


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


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _laplace(x: Tensor) -> Tensor:
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1.0 + torch.erf((x - mean) / (deviation * math.sqrt(2.0))))


def _relu2(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _identity,
    "linear": _identity,
    "gelu": F.gelu,
    "gelu_python": _gelu_python,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_accurate": _gelu_accurate,
    "gelu_fast": _gelu_fast,
    "gelu_10": _gelu_clipped,
    "quick_gelu": _quick_gelu,
    "laplace": _laplace,
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


def activate(x: Tensor, name: str) -> Tensor:
    """The activation `name` of every element of x, in x.dtype.

    Raises:
        ValueError: when no activation has that name.
    """
    try:
        function = ACTIVATIONS[name]
    except KeyError:
        raise ValueError(
            f"There is no activation {name!r}; the known ones are {', '.join(sorted(ACTIVATIONS))}."
        ) from None
    return function(x)


def kernel_activation(name: str) -> int:
    """The code of an activation that kernels compute.

    Raises:
        ValueError: when kernels do not know it.
    """
    try:
        return KERNEL_ACTIVATIONS[name]
    except KeyError:
        raise ValueError(
            f"Kernels do not compute the activation {name!r}; they know "
            f"{', '.join(sorted(KERNEL_ACTIVATIONS))}. Use the reference for this one."
        ) from None


def unsupported_activation(name: str | None) -> str | None:
    """None when kernels compute the activation (or none was named), else the reason."""
    if name is None or name in KERNEL_ACTIVATIONS:
        return None
    return f"no kernel computes the activation {name!r}"
