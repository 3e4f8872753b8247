"""The transform of a masked-language-model head."""

from __future__ import annotations

from torch import Tensor

from fastbert.layers.linear import Linear, alone, project
from fastbert.layers.norm import LayerNorm
from fastbert.ops.activations import Activation
from fastbert.runtime.plan import Plan


def vocabulary_scores(
    rows: Tensor,
    plan: Plan,
    dense: Linear,
    activation: str | Activation,
    norm: LayerNorm,
    decoder: Linear,
) -> Tensor:
    """Compute decoder(norm(activation(dense(rows)))): (rows, hidden) to (rows, vocabulary)."""
    if alone(dense):
        product, bias = dense(rows, plan, bias=False), dense.bias
    else:
        product, bias = project(dense, rows, plan), None
    hidden = plan.act_layer_norm(product, bias, norm.weight, norm.bias, norm.eps, activation)
    return project(decoder, hidden, plan)
