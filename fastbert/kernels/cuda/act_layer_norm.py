"""act_layer_norm on CUDA."""

from __future__ import annotations

from torch import Tensor

from fastbert.kernels.cuda import _rows
from fastbert.ops._op import Traits
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.add_layer_norm import RowNormOperands


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return _rows.width_reason(traits.hidden_size) or unsupported_activation(traits.activation)


def act_layer_norm(o: RowNormOperands) -> Tensor:
    """See `fastbert.ops.act_layer_norm`."""
    return _rows.normalise("act_layer_norm", o)[0]
