"""The text tower of ALIGN (Jia et al. 2021, arXiv:2102.05918): BERT's encoder."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fastbert.branches.bert import BertAttention, BertEmbeddings, BertLayer, bert_modules
from fastbert.modeling.bertlike import BertLikeModel, EncoderModelOutput
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import Options
from fastbert.outputs import BaseModelOutputWithPooling


class AlignTextConfig(PreTrainedConfig):
    """Configuration of ALIGN's text tower; read from an ALIGN checkpoint, its `text_config`."""

    model_type = "align_text_model"
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    use_cache: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


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
