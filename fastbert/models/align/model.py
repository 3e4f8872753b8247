"""ALIGN whole: texts and images in one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.layers.block import Block
from fastbert.layers.linear import Linear, project
from fastbert.layers.unfilled import weights_device
from fastbert.modeling.encoding import Options
from fastbert.models.align.base import AlignPreTrainedModel, chosen
from fastbert.models.align.config import AlignConfig
from fastbert.models.align.outputs import (
    AlignOutput,
    BaseModelOutputWithPoolingAndNoAttention,
)
from fastbert.models.align.text import AlignTextModel
from fastbert.models.align.vision import AlignVisionModel
from fastbert.outputs import BaseModelOutputWithPooling
from fastbert.runtime.plan import Traits

_LABEL_SMOOTHING = 0.1


class AlignModel(AlignPreTrainedModel):
    """Both towers of ALIGN, and how alike a text and an image are.

    Attributes:
        text_model: the text tower.
        vision_model: the image tower; what it pools is an image's vector, without a projection.
        text_projection: a text's first hidden state to its vector.
        temperature: (), what similarities are divided by.
    """

    _no_split_modules = ["AlignTextEmbeddings", "AlignVisionBlock"]

    def __init__(self, config: AlignConfig) -> None:
        super().__init__(config)
        config.check_buildable()
        self.projection_dim = config.projection_dim
        self.text_embed_dim = config.text_config.hidden_size
        self.text_model = AlignTextModel(config.text_config)
        self.vision_model = AlignVisionModel(config.vision_config)
        self.text_projection = Linear(self.text_embed_dim, self.projection_dim)
        self.temperature = nn.Parameter(
            torch.tensor(float(config.temperature_init_value), device=weights_device())
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.xavier_uniform_(self.text_projection.weight)
            self.text_projection.bias.zero_()
            self.temperature.fill_(self.config.temperature_init_value)

    # Parts

    def input_embeddings_place(self) -> tuple[nn.Module, str]:
        """See PreTrainedModel.input_embeddings_place: the words are the text tower's."""
        return self.text_model.input_embeddings_place()

    def blocks(self) -> Sequence[Block]:
        """Return the layers of the text tower, which alone has such."""
        return self.text_model.blocks()

    def prune_heads(self, heads_to_prune: dict[int, Sequence[int]]) -> None:
        """Remove heads of the text tower for good; see PreTrainedModel.prune_heads."""
        self.text_model.prune_heads(heads_to_prune)

    def traits(self) -> Traits:
        """See PreTrainedModel.traits: those of the text tower; images ask for `linear` alone."""
        return self.text_model.traits()

    def torch_parts(self) -> list[str]:
        """See PreTrainedModel.torch_parts."""
        return [*self.text_model.torch_parts(), *self.vision_model.torch_parts()]

    # Computing

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Unpack[Options],
    ) -> BaseModelOutputWithPooling:
        """Encode texts and project them, without making the vectors' lengths 1.

        Arguments are those of AlignTextModel.

        Returns:
            BaseModelOutputWithPooling, or its tuple; pooler_output is (texts, projection_dim), in
            the place of the tower's own.
        """
        wanted = chosen(self, options)
        out: BaseModelOutputWithPooling = self._texts(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, options
        )
        out["pooler_output"] = self._projected(out)
        return wanted.finished(out)

    def get_image_features(
        self, pixel_values: Tensor, **options: Unpack[Options]
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Encode images, without making the vectors' lengths 1.

        Arguments are those of AlignVisionModel.

        Returns:
            BaseModelOutputWithPoolingAndNoAttention, or its tuple; pooler_output is (images,
            projection_dim).
        """
        wanted = chosen(self, options)
        out: BaseModelOutputWithPoolingAndNoAttention = self._images(pixel_values, options)
        return wanted.finished(out)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_loss: bool | None = None,
        **options: Unpack[Options],
    ) -> AlignOutput:
        """Compare texts with images.

        Args:
            input_ids: int64 (texts, length).
            pixel_values: floating (images, channels, height, width).
            attention_mask: as for AlignTextModel, like all but the next.
            token_type_ids: likewise.
            position_ids: likewise.
            inputs_embeds: likewise.
            return_loss: whether to compute the loss of texts that belong to the images of the same
                number, each to its own alone.
            **options: those of Options, for both towers.

        Returns:
            AlignOutput, or its tuple.

        Raises:
            ValueError: for no texts or no images, or a loss of more of the one than of the other.
            TypeError: for an option that does not exist.
        """
        wanted = chosen(self, options)
        images = self._images(pixel_values, options)
        texts = self._texts(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, options
        )
        image_embeds, text_embeds = _unit(images[1]), _unit(self._projected(texts))
        per_text = torch.matmul(text_embeds, image_embeds.t()) / self.temperature
        loss = _loss(per_text) if return_loss else None
        output = AlignOutput(loss, per_text.t(), per_text, text_embeds, image_embeds, texts, images)
        return wanted.finished(output)

    def _images(self, pixel_values: Tensor | None, options: Options) -> Any:
        return self.vision_model(pixel_values=pixel_values, **_for_towers(options))

    def _texts(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        options: Options,
    ) -> Any:
        return self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **_for_towers(options),
        )

    def _projected(self, texts: Any) -> Tensor:
        """Project the first hidden state of every text."""
        first: Tensor = texts[0][:, 0]
        gradients = torch.is_grad_enabled() and (
            first.requires_grad or self.text_projection.weight.requires_grad
        )
        return project(self.text_projection, first, self.plan(gradients))


def _for_towers(options: Options) -> dict[str, Any]:
    return {**options, "return_dict": True}


def _unit(vectors: Tensor) -> Tensor:
    """Give every row the length 1."""
    lengths: Tensor = vectors.norm(p=2, dim=-1, keepdim=True)
    return vectors / lengths


def _loss(per_text: Tensor) -> Tensor:
    """Return the mean loss of choosing the image for each text, and the text for each image.

    Raises:
        ValueError: for more texts than images, or fewer.
    """
    texts, images = per_text.shape
    if texts != images:
        raise ValueError(
            f"return_loss compares each text with its own image, but there are {texts} texts and "
            f"{images} images; pass as many of both."
        )
    own = torch.arange(texts, device=per_text.device)
    losses = [
        F.cross_entropy(logits, own, label_smoothing=_LABEL_SMOOTHING)
        for logits in (per_text, per_text.t())
    ]
    return (losses[0] + losses[1]) / 2.0
