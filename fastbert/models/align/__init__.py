"""ALIGN (Jia et al. 2021, arXiv:2102.05918): a BERT and an EfficientNet that meet in one space."""

from fastbert.models.align.base import AlignPreTrainedModel
from fastbert.models.align.config import AlignConfig, AlignTextConfig, AlignVisionConfig
from fastbert.models.align.model import AlignModel
from fastbert.models.align.outputs import AlignOutput, BaseModelOutputWithPoolingAndNoAttention
from fastbert.models.align.text import AlignTextModel
from fastbert.models.align.vision import AlignVisionModel

__all__ = [
    "AlignConfig",
    "AlignModel",
    "AlignOutput",
    "AlignPreTrainedModel",
    "AlignTextConfig",
    "AlignTextModel",
    "AlignVisionConfig",
    "AlignVisionModel",
    "BaseModelOutputWithPoolingAndNoAttention",
]
