"""Bias and activation."""

from __future__ import annotations

from torch import Tensor

from fastbert.ops.activations import activate

SCHEMA = "(Tensor x, Tensor? bias, str activation) -> Tensor"


def bias_act(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x + bias).

    Args:
        x: (rows, hidden), floating.
        bias: (hidden,), x.dtype, or None.
        activation: "none", "gelu" (exact, erf), "gelu_new" or "gelu_pytorch_tanh", "relu", "silu",
            "tanh"; the reference knows the others of `fastbert.ops.activations`.

    Returns:
        (rows, hidden), x.dtype.

    Source: gelu is Hendrycks, Gimpel 2016: x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2))).
    """
    return activate(x if bias is None else x + bias, activation)
