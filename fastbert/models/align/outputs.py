"""Outputs of ALIGN; see `fastbert.outputs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastbert.outputs import ModelOutput


@dataclass
class BaseModelOutputWithNoAttention(ModelOutput):
    """The output of the blocks of an image tower.

    Attributes:
        last_hidden_state: (batch, channels, height, width), the last block's map.
        hidden_states: the stem's map and every block's, where they were asked for.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPoolingAndNoAttention(ModelOutput):
    """The output of an image tower.

    Attributes:
        last_hidden_state: (batch, channels, height, width), the last block's map.
        pooler_output: (batch, channels).
        hidden_states: the stem's map and every block's, where they were asked for.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class AlignOutput(ModelOutput):
    """What texts and images have to do with one another.

    Attributes:
        loss: scalar, where return_loss asked for it.
        logits_per_image: (images, texts), the similarities over the temperature.
        logits_per_text: (texts, images), the same the other way round.
        text_embeds: (texts, projection_dim), of length 1.
        image_embeds: (images, projection_dim), of length 1.
        text_model_output: the text tower's.
        vision_model_output: the image tower's.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: Any = None
    vision_model_output: Any = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order; the towers' outputs as tuples too."""
        # A tower of one's own returns an output of its own kind.
        return tuple(
            value.to_tuple() if hasattr(value, "to_tuple") else value
            for value in super().to_tuple()
        )
