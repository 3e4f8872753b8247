"""What modules of heads compute: on kernels, while they are as they were built."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastbert.branches.bert import ActivationFunction
from fastbert.layers.hooks import hooked
from fastbert.layers.linear import alone, current_plan
from fastbert.layers.norm import LayerNorm
from fastbert.ops.activations import Activation
from fastbert.runtime.plan import Plan


def activated(part: Any, activation: nn.Module | None, x: Tensor) -> Tensor:
    """Compute activation(part(x)) on (..., width), on the kernels of the pass if possible.

    Args:
        part: a projection, or whatever stands in its place.
        activation: what follows; None for nothing.
        x: (..., width).

    Returns:
        (..., values).
    """
    plan, kind = current_plan(), _kind(activation)
    if plan is not None and kind is not None and alone(part):
        flat: Tensor = part(x.reshape(-1, x.shape[-1]), plan, kind)
        return flat.reshape(*x.shape[:-1], -1)
    out: Tensor = part(x)
    if activation is None:
        return out
    if plan is None or kind is None:
        result: Tensor = activation(out)
        return result
    return out if kind == "none" else _alone(plan, out, kind)


def _alone(plan: Plan, x: Tensor, kind: str | Activation) -> Tensor:
    return plan.bias_act(x.reshape(-1, x.shape[-1]), None, kind).reshape(x.shape)


def _kind(activation: nn.Module | None) -> str | Activation | None:
    """Return the activation as the op `linear` takes it; None where it must be called."""
    if activation is None:
        return "none"
    if hooked(activation):
        return None
    if type(activation) is ActivationFunction:
        return activation.kind
    return {nn.Identity: "none", nn.Tanh: "tanh"}.get(type(activation))


def normalised(norm: Any, x: Tensor) -> Tensor:
    """Compute norm(x) on (..., width), on the kernels of the pass if possible."""
    plan = current_plan()
    if plan is None or type(norm) is not LayerNorm or hooked(norm) or norm.bias is None:
        out: Tensor = norm(x)
        return out
    flat: Tensor = norm(x.reshape(-1, x.shape[-1]), plan)
    return flat.reshape(x.shape)
