"""The text tower of ALIGN (Jia et al. 2021, arXiv:2102.05918): BERT's encoder."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fastbert.branches.bert import BertAttention, BertEmbeddings, BertLayer, bert_modules
from fastbert.modeling.bertlike import BertLikeModel, EncoderModelOutput
from fastbert.modeling.encoding import Options
from fastbert.models.align.config import AlignTextConfig
from fastbert.outputs import BaseModelOutputWithPooling


class AlignTextEmbeddings(BertEmbeddings):
    """BERT's tables."""


class AlignTextAttention(BertAttention):
    """BERT's attention, which keeps its weights to itself."""

    returns_weights = False


class AlignTextLayer(BertLayer):
    """BERT's layer."""


class AlignTextModel(BertLikeModel):
    """The text tower without its projection.

    It loads from checkpoints of the tower alone and from those of the whole of ALIGN, whose other
    parts it leaves alone.
    """

    config_class = AlignTextConfig
    base_model_prefix = "text_model"
    output_class = BaseModelOutputWithPooling
    module_table = bert_modules(
        embeddings=AlignTextEmbeddings, layer=AlignTextLayer, attention=AlignTextAttention
    )
    _no_split_modules = ["AlignTextEmbeddings"]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Unpack[Options],
    ) -> EncoderModelOutput:
        """Encode as BertModel does; what only decoders take is refused.

        Returns:
            BaseModelOutputWithPooling, or its tuple.
        """
        refused = sorted(set(options) - set(Options.__annotations__))
        if refused:
            raise TypeError(f"The forward of AlignTextModel has no argument {', '.join(refused)}.")
        return super().forward(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **options
        )
