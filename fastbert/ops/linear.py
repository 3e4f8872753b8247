"""Matrix product with bias, activation and residual in its epilogue."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastbert.ops.activations import activate

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias=None, str activation='none', "
    "Tensor? residual=None, Tensor? packed=None) -> Tensor"
)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """activation(x @ weight.T + bias) + residual, accumulated in float32 or better.

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
    """
    out = activate(F.linear(x, weight, bias), activation)
    return out if residual is None else out + residual
