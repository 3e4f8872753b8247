"""The scores of FlauBERT's vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbert.layers.parent import Parent


class FlaubertPredLayer(Parent):
    """The scores of the vocabulary.

    Args:
        proj: the projection to the vocabulary, or an adaptive softmax over it.

    Attributes:
        asm: whether it is an adaptive softmax.
    """

    proj: Any

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.asm = isinstance(proj, nn.AdaptiveLogSoftmaxWithLoss)
        self.proj = proj

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        """Score hidden states (..., emb_dim).

        Args:
            x: the hidden states.
            y: (...), the true tokens, -100 where there is none.

        Returns:
            (scores,), or (loss, scores) where y is given.
        """
        rows = x.reshape(-1, x.shape[-1])
        flat: Tensor = self.proj.log_prob(rows) if self.asm else self.proj(x)
        scores = flat.reshape(*x.shape[:-1], -1)
        if y is None:
            return (scores,)
        loss = torch.nn.functional.cross_entropy(
            scores.reshape(-1, scores.shape[-1]), y.to(scores.device).reshape(-1)
        )
        return (loss, scores)
