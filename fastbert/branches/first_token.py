"""Heads that judge a whole text by its first token, through a layer of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from fastbert.branches.heads import RobertaClassificationHead
from fastbert.engine.encoder import Wanted
from fastbert.layers.calling import call, hidden_of
from fastbert.layers.linear import Linear, project, running_on
from fastbert.modeling import tasks
from fastbert.modeling.encoding import EncoderInputs, Encoding
from fastbert.modeling.head_parts import held_part


class FirstTokenClassification(tasks.ForSequenceClassification):
    """A label for a whole text, from the first token through a layer of the head's own.

    Class attributes:
        classifier_class: of `classifier`.
    """

    pooled = False
    classifier_class: ClassVar[type[RobertaClassificationHead]] = RobertaClassificationHead

    def build_head(self, config: Any) -> None:
        """Build `classifier`."""
        self.classifier = self.classifier_class(
            dense=Linear(config.hidden_size, config.hidden_size),
            out_proj=Linear(config.hidden_size, config.num_labels),
            dropout=self.head_dropout(),
        )

    def dropped(self, x: Tensor) -> Tensor:
        """Apply the classifier's own dropout."""
        out: Tensor = self.classifier.dropout(x)
        return out

    def _called(self) -> bool:
        return self._head_built.why(self, "classifier") is not None

    def encode(self, inputs: EncoderInputs, wanted: Wanted) -> Encoding:
        """Run the encoder, on all tokens where somebody's classifier may look at them."""
        if self._called():
            wanted = replace(wanted, keep_padding=True)
        return super().encode(inputs, wanted)

    def classify(self, encoding: Encoding) -> Tensor:
        """Score the labels, (batch, num_labels)."""
        if self._called():
            with running_on(encoding.plan):
                return hidden_of(call(held_part(self, "classifier"), encoding.padded()))
        first = self.dropped(encoding.first_tokens())
        kind = self.classifier_class.kind
        hidden = project(self.classifier.dense, first, encoding.plan, kind)
        return project(self.classifier.out_proj, self.dropped(hidden), encoding.plan)


class PreClassified(tasks.HeadModel):
    """A score for a whole text: `classifier` behind `pre_classifier` of the first token, and relu.

    It comes before the task among the bases of a class.
    """

    pooled = False
    pre_classifier: Any
    classifier: Any

    def build_head(self, config: Any) -> None:
        """Build both, as wide as the task asks for."""
        self.pre_classifier = Linear(config.hidden_size, config.hidden_size)
        super().build_head(config)

    def classify(self, encoding: Encoding) -> Tensor:
        """Score every text: (batch, values)."""
        first = encoding.first_tokens()
        hidden = project(self.pre_classifier, first, encoding.plan, "relu")
        return project(self.classifier, self.dropped(hidden), encoding.plan)
