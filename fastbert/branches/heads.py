"""The modules of heads, with the names, arguments and results of transformers 5."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastbert.branches.bert import ActivationFunction
from fastbert.layers.calling import call
from fastbert.layers.parent import Parent
from fastbert.ops.activations import Activation


class HeadBranch(Parent):
    """Base of the branches of heads: their children are planted from outside.

    Args:
        activation: of the head.
    """

    dense: Any
    decoder: Any
    LayerNorm: Any

    def __init__(self, activation: str | Activation) -> None:
        super().__init__()


class BertPredictionHeadTransform(HeadBranch):
    """LayerNorm(activation(dense(hidden_states)))."""

    def __init__(self, activation: str | Activation) -> None:
        super().__init__(activation)
        self.transform_act_fn = ActivationFunction(activation)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform (..., hidden)."""
        out: Tensor = self.LayerNorm(self.transform_act_fn(self.dense(hidden_states)))
        return out


class BertLMPredictionHead(HeadBranch):
    """The transform, and the projection to the vocabulary."""

    transform: Any

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Score (..., hidden)."""
        out: Tensor = self.decoder(call(self.transform, hidden_states))
        return out


class RemBertLMPredictionHead(HeadBranch):
    """decoder(LayerNorm(activation(dense(hidden_states))))."""

    def __init__(self, activation: str | Activation) -> None:
        super().__init__(activation)
        self.activation = ActivationFunction(activation)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Score (..., hidden)."""
        out: Tensor = self.decoder(self.LayerNorm(self.activation(self.dense(hidden_states))))
        return out


class BertOnlyMLMHead(HeadBranch):
    """The head that scores the vocabulary."""

    predictions: Any

    def forward(self, sequence_output: Tensor) -> Tensor:
        """Score (..., hidden)."""
        out: Tensor = call(self.predictions, sequence_output)
        return out


class BertPreTrainingHeads(HeadBranch):
    """The head that scores the vocabulary, and the one that judges the next sentence."""

    predictions: Any
    seq_relationship: Any

    def forward(self, sequence_output: Tensor, pooled_output: Tensor) -> tuple[Tensor, Tensor]:
        """Score hidden states (..., hidden), and the pooled text (batch, hidden)."""
        return call(self.predictions, sequence_output), self.seq_relationship(pooled_output)


class BertOnlyNSPHead(HeadBranch):
    """The head that judges the next sentence."""

    seq_relationship: Any

    def forward(self, pooled_output: Tensor) -> Tensor:
        """Score the pooled text (batch, hidden)."""
        out: Tensor = self.seq_relationship(pooled_output)
        return out


class RobertaLMHead(HeadBranch):
    """decoder(layer_norm(gelu(dense(features))))."""

    layer_norm: Any

    def forward(self, features: Tensor, **_: Any) -> Tensor:
        """Score (..., hidden)."""
        out: Tensor = self.decoder(self.layer_norm(nn.functional.gelu(self.dense(features))))
        return out


class RobertaClassificationHead(Parent):
    """A classifier that reads the first token.

    Args:
        dense: hidden to hidden, which a tanh follows.
        out_proj: hidden to the labels.
        dropout: probability before each of them.

    Class attributes:
        kind: the activation behind `dense`.
    """

    kind: ClassVar[str] = "tanh"
    dense: Any
    out_proj: Any

    def __init__(self, dense: nn.Module, out_proj: nn.Module, dropout: float) -> None:
        super().__init__()
        self.dense = dense
        self.dropout = nn.Dropout(dropout)
        self.out_proj = out_proj

    def forward(self, features: Tensor, **_: Any) -> Tensor:
        """Score (batch, length, hidden) by column 0."""
        hidden = torch.tanh(self.dense(self.dropout(features[:, 0, :])))
        out: Tensor = self.out_proj(self.dropout(hidden))
        return out


class ElectraClassificationHead(RobertaClassificationHead):
    """The same with gelu, in a module of its own."""

    kind = "gelu"

    def __init__(self, dense: nn.Module, out_proj: nn.Module, dropout: float) -> None:
        super().__init__(dense, out_proj, dropout)
        self.activation = ActivationFunction(self.kind)

    def forward(self, features: Tensor, **_: Any) -> Tensor:
        """Score (batch, length, hidden) by column 0."""
        hidden = self.activation(self.dense(self.dropout(features[:, 0, :])))
        out: Tensor = self.out_proj(self.dropout(hidden))
        return out


class ElectraGeneratorPredictions(HeadBranch):
    """LayerNorm(gelu(dense(hidden_states)))."""

    def __init__(self, activation: str | Activation) -> None:
        super().__init__(activation)
        self.activation = ActivationFunction(activation)

    def forward(self, generator_hidden_states: Tensor) -> Tensor:
        """Transform (..., hidden) to (..., embedding width)."""
        out: Tensor = self.LayerNorm(self.activation(self.dense(generator_hidden_states)))
        return out


class ElectraDiscriminatorPredictions(HeadBranch):
    """dense_prediction(activation(dense(hidden_states)))."""

    dense_prediction: Any

    def __init__(self, activation: str | Activation) -> None:
        super().__init__(activation)
        self.activation = ActivationFunction(activation)

    def forward(self, discriminator_hidden_states: Tensor) -> Tensor:
        """Score (..., hidden): (...)."""
        hidden = self.activation(self.dense(discriminator_hidden_states))
        out: Tensor = self.dense_prediction(hidden).squeeze(-1)
        return out
