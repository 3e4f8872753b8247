"""Root-mean-square normalisation with the residual addition before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastbert.layers.hooks import hooked
from fastbert.layers.linear import plan_of_pass
from fastbert.layers.methods import as_defined
from fastbert.layers.unfilled import weights_device
from fastbert.runtime.plan import Plan


@as_defined
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Args:
        hidden_size: size of the last dimension.
        eps: added to the mean of the squares; a property of the checkpoint, so it has no default.
    """

    settings = ("variance_epsilon",)  # what a snapshot of a model compares

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, device=weights_device()))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise every row: (..., hidden_size) to the same shape."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        plan = plan_of_pass(hidden_states)
        out, _ = plan.rms_norm(rows, self.weight, self.variance_epsilon)
        return out.reshape(hidden_states.shape)

    def extra_repr(self) -> str:
        """Describe the norm as transformers does."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


def untouched(norm: nn.Module) -> bool:
    """Return whether an op may compute a norm with what stands beside it.

    It may where the norm is ours and nobody looks at its result.
    """
    return type(norm) is RMSNorm and not hooked(norm)


def add_norm(norm: nn.Module, x: Tensor, residual: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return norm(x + residual) and x + residual, in one pass where the norm is ours.

    Args:
        norm: an RMSNorm, or what someone put in its place.
        x: (..., hidden).
        residual: likewise.
        plan: the backends.
    """
    if not isinstance(norm, RMSNorm) or not untouched(norm):
        total = residual + x
        return norm(total), total
    width = x.shape[-1]
    out, total = plan.rms_norm(
        x.reshape(-1, width),
        norm.weight,
        norm.variance_epsilon,
        residual.reshape(-1, width),
        return_sum=True,
    )
    return out.reshape(x.shape), total.reshape(x.shape)
