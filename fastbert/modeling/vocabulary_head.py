"""Heads that score the vocabulary, whatever their family calls the parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastbert.layers.heads import vocabulary_scores
from fastbert.layers.linear import Linear
from fastbert.layers.norm import LayerNorm
from fastbert.layers.unfilled import weights_device
from fastbert.modeling import tasks
from fastbert.modeling.encoding import Encoding
from fastbert.modeling.parts import part, plant
from fastbert.ops.activations import Activation


@dataclass(frozen=True)
class VocabularyNames:
    """Paths of the parts of a head, counted from the model that has it.

    Attributes:
        dense: the projection of hidden states, which the activation follows.
        norm: LayerNorm behind the activation.
        decoder: the projection to the vocabulary.
        bias: the parameter that is one with the decoder's bias; None where there is none.
    """

    dense: str
    norm: str
    decoder: str
    bias: str | None = None


class NamedVocabularyHead(tasks.VocabularyHead):
    """A head that computes decoder(norm(activation(dense(x)))) with its parts at `head_names`.

    Class attributes:
        head_names: where the parts are. Which of them are one with others stands in
            `_tied_weights_keys`.
    """

    head_names: ClassVar[VocabularyNames]

    def head_width(self) -> int:
        """Width between dense and decoder."""
        return int(self.config.hidden_size)

    def head_activation(self) -> str | Activation:
        """Return the activation behind dense."""
        return str(self.config.hidden_act)

    def build_head(self, config: Any) -> None:
        """Build the parts where the checkpoints have them."""
        names, width = self.head_names, self.head_width()
        plant(self, names.dense, Linear(config.hidden_size, width))
        plant(self, names.norm, LayerNorm(width, config.layer_norm_eps))
        plant(self, names.decoder, Linear(width, config.vocab_size))
        if names.bias is not None:
            plant(
                self,
                names.bias,
                nn.Parameter(torch.zeros(config.vocab_size, device=weights_device())),
            )

    def get_output_embeddings(self) -> Linear:
        """Find the projection to the vocabulary."""
        return part(Linear, self, self.head_names.decoder)

    def set_output_embeddings(self, new_embeddings: Linear) -> None:
        """Replace the projection to the vocabulary, and the bias that is one with its own."""
        plant(self, self.head_names.decoder, new_embeddings)
        if self.head_names.bias is not None:
            plant(self, self.head_names.bias, new_embeddings.bias)

    def score(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        """Score the vocabulary: (tokens, hidden) to (tokens, vocabulary)."""
        names = self.head_names
        return vocabulary_scores(
            hidden,
            encoding.plan,
            part(Linear, self, names.dense),
            self.head_activation(),
            part(LayerNorm, self, names.norm),
            part(Linear, self, names.decoder),
        )
