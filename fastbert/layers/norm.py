"""LayerNorm with the residual addition before it."""

from __future__ import annotations

from torch import Tensor, nn

from fastbert.layers.methods import as_defined
from fastbert.layers.unfilled import weights_device
from fastbert.runtime.plan import Plan


@as_defined
class LayerNorm(nn.LayerNorm):
    """LayerNorm(x + residual) over the last dimension; parameters are those of nn.LayerNorm.

    Args:
        hidden_size: size of the last dimension.
        eps: added to the variance; a property of the checkpoint, so it has no default.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, device=weights_device())

    def forward(
        self, x: Tensor, plan: Plan | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Normalise x + residual, every token by itself.

        Args:
            x: (tokens, hidden_size), or (..., hidden_size) without a plan.
            plan: the backends; None for torch's own.
            residual: (tokens, hidden_size), added before; None adds nothing.

        Returns:
            (tokens, hidden_size), x.dtype.
        """
        if plan is None:
            return super().forward(x if residual is None else x + residual)
        out: Tensor
        out, _ = plan.add_layer_norm(x, self.weight, self.bias, self.eps, residual)
        return out
