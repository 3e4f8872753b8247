"""LayerNorm of an activation: the transform of a language-model head."""

from __future__ import annotations

from torch import Tensor

from fastbert.ops.add_layer_norm import layer_norm
from fastbert.ops.bias_act import bias_act

SCHEMA = (
    "(Tensor x, Tensor? bias, Tensor weight, Tensor ln_bias, float eps, str activation) -> Tensor"
)


def act_layer_norm(
    x: Tensor, bias: Tensor | None, weight: Tensor, ln_bias: Tensor, eps: float, activation: str
) -> Tensor:
    """LayerNorm(activation(x + bias)), the maths of `bias_act` and `add_layer_norm`.

    Args:
        x: (rows, hidden), floating.
        bias: (hidden,), x.dtype, or None; added before the activation.
        weight, ln_bias: (hidden,), x.dtype, of the LayerNorm.
        eps: added to the variance.
        activation: as for `bias_act`.

    Returns:
        (rows, hidden), x.dtype.
    """
    return layer_norm(bias_act(x, bias, activation), weight, ln_bias, eps)
