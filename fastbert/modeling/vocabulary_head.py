"""Heads that score the vocabulary, whatever their family calls the parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastbert.layers.calling import call, hidden_of
from fastbert.layers.heads import vocabulary_scores
from fastbert.layers.linear import Linear, running_on
from fastbert.layers.norm import LayerNorm
from fastbert.layers.unfilled import weights_device
from fastbert.modeling import tasks
from fastbert.modeling.encoding import Encoding
from fastbert.modeling.head_parts import held_part, without_padding
from fastbert.modeling.parts import bare, part, plant
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
        head_classes: path of a branch -> its class, which is called with the activation.
        head_order: of the parts among the model's parameters.
    """

    head_names: ClassVar[VocabularyNames]
    head_classes: ClassVar[Mapping[str, Callable[[str | Activation], nn.Module]]] = {}
    head_order: ClassVar[tuple[str, ...]] = ("dense", "norm", "decoder")

    def head_width(self) -> int:
        """Width between dense and decoder."""
        return int(self.config.hidden_size)

    def head_activation(self) -> str | Activation:
        """Return the activation behind dense; asked when the head is built."""
        return str(self.config.hidden_act)

    def head_eps(self) -> float:
        """Return what the norm adds to the variance."""
        return float(self.config.layer_norm_eps)

    def build_head(self, config: Any) -> None:
        """Build the parts where the checkpoints have them."""
        names, width = self.head_names, self.head_width()
        self._built_activation = self.head_activation()

        def make(path: str, layer: int | None) -> nn.Module:
            kind = self.head_classes.get(path)
            return bare(path, layer) if kind is None else kind(self._built_activation)

        made = {
            "dense": (names.dense, Linear(config.hidden_size, width)),
            "norm": (names.norm, LayerNorm(width, self.head_eps())),
            "decoder": (names.decoder, Linear(width, config.vocab_size)),
        }
        for part_name in self.head_order:
            plant(self, *made[part_name], make=make)
        if names.bias is not None:
            bias = nn.Parameter(torch.zeros(config.vocab_size, device=weights_device()))
            plant(self, names.bias, bias, make=make)

    def head_roots(self) -> tuple[str, ...]:
        """Return the names of the modules that the head consists of, the decoder's first."""
        names = self.head_names
        paths = (names.decoder, names.dense, names.norm)
        return tuple(dict.fromkeys(path.partition(".")[0] for path in paths))

    def _callable(self) -> bool:
        return bool(self.head_classes) or len(self.head_roots()) > 1

    def called_head(self) -> bool:
        """Return whether the head is not as it was built, and so is called on all tokens."""
        if not self._callable():
            return False
        return any(self._head_built.why(self, name) is not None for name in self.head_roots())

    def head_parts(self) -> list[str]:
        """See HeadModel.head_parts."""
        return super().head_parts() if self._callable() else []

    def called_scores(self, encoding: Encoding) -> Tensor | None:
        """Score all tokens by calling a head that is not as it was built; None otherwise."""
        if not self.called_head():
            return None
        with running_on(encoding.plan):
            logits = hidden_of(self.call_head(held_part(self, self.head_roots()[0]), encoding))
        return without_padding(logits, encoding)

    def call_head(self, head: Any, encoding: Encoding) -> Any:
        """Call the whole head on (batch, length, hidden).

        A family whose head consists of several modules overrides this.

        Args:
            head: the module that holds the decoder.
            encoding: one pass of the encoder.
        """
        return call(head, encoding.padded())

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
            self._built_activation,
            part(LayerNorm, self, names.norm),
            part(Linear, self, names.decoder),
        )
