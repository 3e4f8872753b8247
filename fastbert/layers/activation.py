"""Activations as modules, where a checkpoint has parameters for them or users may hook them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastbert.layers.linear import plan_of_pass
from fastbert.layers.methods import as_defined
from fastbert.layers.unfilled import weights_device

# How the slopes of a new model begin: softplus of the parameters gives these, beta included.
_SLOPE = 0.8
_BETA = 0.5
_EPS = -1e-6


@as_defined
class XIELU(nn.Module):
    """The activation xIELU; see the op `xielu`.

    Attributes:
        alpha_p, alpha_n: (1,), learned.
        beta, eps: (), constants that checkpoints hold too.
    """

    beta: Tensor
    eps: Tensor

    def __init__(self) -> None:
        super().__init__()
        place = weights_device()
        self.alpha_p = nn.Parameter(torch.empty(1, device=place))
        self.alpha_n = nn.Parameter(torch.empty(1, device=place))
        self.register_buffer("beta", torch.empty((), device=place))
        self.register_buffer("eps", torch.empty((), device=place))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set parameters and constants to what a new model begins with."""
        self.alpha_p.fill_(math.log(math.expm1(_SLOPE)))
        self.alpha_n.fill_(math.log(math.expm1(_SLOPE - _BETA)))
        self.beta.fill_(_BETA)
        self.eps.fill_(_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the activation of every element, x's shape and dtype."""
        rows = x.reshape(-1, x.shape[-1])
        out = plan_of_pass(x).xielu(rows, self.alpha_p, self.alpha_n, self.beta, self.eps)
        return out.reshape(x.shape)


@as_defined
class NamedActivation(nn.Module):
    """An activation without parameters of its own.

    Args:
        name: one of `fastbert.ops.activations`.
    """

    settings = ("name",)  # what a snapshot of a model compares

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Compute the activation of every element, x's shape and dtype."""
        rows = x.reshape(-1, x.shape[-1])
        return plan_of_pass(x).bias_act(rows, None, self.name).reshape(x.shape)

    def extra_repr(self) -> str:
        """Name the activation."""
        return self.name
