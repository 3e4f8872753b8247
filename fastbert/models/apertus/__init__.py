"""Apertus: a decoder with xIELU, normalised queries and keys, and rotary positions."""

from fastbert.models.apertus.base import ApertusPreTrainedModel
from fastbert.models.apertus.config import ApertusConfig
from fastbert.models.apertus.heads import ApertusForCausalLM, ApertusForTokenClassification
from fastbert.models.apertus.model import ApertusModel
from fastbert.models.apertus.modules import ApertusAttention, ApertusDecoderLayer, ApertusMLP

__all__ = [
    "ApertusAttention",
    "ApertusConfig",
    "ApertusDecoderLayer",
    "ApertusForCausalLM",
    "ApertusForTokenClassification",
    "ApertusMLP",
    "ApertusModel",
    "ApertusPreTrainedModel",
]
