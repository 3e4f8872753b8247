"""XLM's summary of a sequence: one row that stands for a whole text."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastbert.layers.linear import Linear, project
from fastbert.layers.parameter_tree import ParameterTree
from fastbert.modeling.encoding import Encoding
from fastbert.models.flaubert.config import FlaubertConfig


class SequenceSummary(ParameterTree):
    """What stands for a whole text, and its projection.

    Args:
        config: summary_type ("first", "last", "mean" or "cls_index"), summary_use_proj,
            summary_proj_to_labels, num_labels, emb_dim, summary_activation, summary_first_dropout.
    """

    def __init__(self, config: FlaubertConfig) -> None:
        super().__init__()
        self.config = config
        if config.summary_type not in ("first", "last", "mean", "cls_index"):
            raise ValueError(
                "summary_type is 'first', 'last', 'mean' or 'cls_index', "
                f"not {config.summary_type!r}."
            )
        if config.summary_use_proj:
            to_labels = config.summary_proj_to_labels and config.num_labels > 0
            width = config.num_labels if to_labels else config.emb_dim
            self.summary = Linear(config.emb_dim, width)

    def summarise(self, encoding: Encoding) -> Tensor:
        """Summarise every text: (batch, num_labels), or (batch, emb_dim) where config says so."""
        config, padded = self.config, encoding.padded()
        if config.summary_type == "mean":
            out = padded.mean(dim=1)
        else:
            # Without a given index, "cls_index" is the last column.
            out = padded[:, 0 if config.summary_type == "first" else -1]
        out = F.dropout(out, config.summary_first_dropout, self.training)
        if config.summary_use_proj:
            activation = config.summary_activation or "none"
            out = project(self.summary, out, encoding.plan, activation)
        elif config.summary_activation:
            out = encoding.plan.bias_act(out, None, config.summary_activation)
        return F.dropout(out, getattr(config, "summary_last_dropout", 0.0), self.training)
