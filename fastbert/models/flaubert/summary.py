"""XLM's summary of a sequence: one row that stands for a whole text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbert.branches.bert import ActivationFunction
from fastbert.layers.linear import Linear
from fastbert.layers.parent import Parent
from fastbert.models.flaubert.config import FlaubertConfig
from fastbert.models.flaubert.products import activated


class SequenceSummary(Parent):
    """What stands for a whole text, and its projection.

    Args:
        config: summary_type ("first", "last", "mean" or "cls_index"), summary_use_proj,
            summary_proj_to_labels, num_labels, emb_dim, summary_activation, summary_first_dropout,
            summary_last_dropout.
    """

    summary: Any
    activation: Any

    def __init__(self, config: FlaubertConfig) -> None:
        super().__init__()
        self.config = config
        self.summary_type = config.summary_type
        if self.summary_type not in ("first", "last", "mean", "cls_index"):
            raise ValueError(
                "summary_type is 'first', 'last', 'mean' or 'cls_index', "
                f"not {self.summary_type!r}."
            )
        self.summary = nn.Identity()
        if config.summary_use_proj:
            to_labels = config.summary_proj_to_labels and config.num_labels > 0
            width = config.num_labels if to_labels else config.emb_dim
            self.summary = Linear(config.emb_dim, width)
        name = config.summary_activation
        self.activation = ActivationFunction(name) if name else nn.Identity()
        self.first_dropout = _dropout(config.summary_first_dropout)
        self.last_dropout = _dropout(getattr(config, "summary_last_dropout", 0.0))

    def forward(self, hidden_states: Tensor, cls_index: Tensor | None = None) -> Tensor:
        """Summarise every text.

        Args:
            hidden_states: (batch, length, emb_dim), or with more dimensions in front of length.
            cls_index: (batch,), the column that "cls_index" takes; None for the last one.

        Returns:
            (batch, num_labels), or (batch, emb_dim) where the configuration says so.
        """
        if self.summary_type == "mean":
            out = hidden_states.mean(dim=1)
        elif self.summary_type == "cls_index" and cls_index is not None:
            index = cls_index[..., None, None]
            index = index.expand(*index.shape[:-1], hidden_states.shape[-1])
            out = hidden_states.gather(-2, index).squeeze(-2)
        elif self.summary_type == "cls_index":
            out = hidden_states[..., -1, :]
        else:
            out = hidden_states[:, 0 if self.summary_type == "first" else -1]
        out = activated(self.summary, self.activation, self.first_dropout(out))
        dropped: Tensor = self.last_dropout(out)
        return dropped


def _dropout(probability: float) -> nn.Module:
    return nn.Dropout(probability) if probability > 0 else nn.Identity()


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
