"""XLM's summary of a sequence: one row that stands for a whole text."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastbert.branches.bert import ActivationFunction
from fastbert.branches.products import activated
from fastbert.layers.linear import Linear
from fastbert.layers.parent import Parent


class SequenceSummary(Parent):
    """What stands for a whole text, and its projection.

    Args:
        config: summary_type ("first", "last", "mean" or "cls_index"), summary_use_proj,
            summary_proj_to_labels, num_labels, hidden_size, summary_activation,
            summary_first_dropout, summary_last_dropout.
    """

    summary: Any
    activation: Any

    def __init__(self, config: Any) -> None:
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
            to_labels = getattr(config, "summary_proj_to_labels", False) and config.num_labels > 0
            width = config.num_labels if to_labels else config.hidden_size
            self.summary = Linear(config.hidden_size, width)
        name = config.summary_activation
        self.activation = ActivationFunction(name) if name else nn.Identity()
        self.first_dropout = _dropout(getattr(config, "summary_first_dropout", 0.0))
        self.last_dropout = _dropout(getattr(config, "summary_last_dropout", 0.0))

    def forward(self, hidden_states: Tensor, cls_index: Tensor | None = None) -> Tensor:
        """Summarise every text.

        Args:
            hidden_states: (batch, length, hidden_size), or with more dimensions in front of length.
            cls_index: (batch,), the column that "cls_index" takes; None for the last one.

        Returns:
            (batch, num_labels), or (batch, hidden_size) where the configuration says so.
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
