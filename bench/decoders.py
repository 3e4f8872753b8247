"""Checkpoints of decoders for the benchmark: random weights in the shape of small Apertus."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.models import CACHE


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder, which decide its work.

    Attributes:
        name: the registry's name of the model.
        layers: number of layers.
        hidden: width of the hidden states.
        intermediate: width between the two projections of the feed-forward part.
        heads: number of query heads.
        kv_heads: number of key/value heads.
        vocabulary: number of tokens; the table of tokens is also the last projection.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int = 131072

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def layer_weights(self) -> int:
        """Number of weights in the layers' projections."""
        attention = 2 * self.hidden * (self.hidden + self.kv_heads * self.head_dim)
        return self.layers * (attention + 2 * self.hidden * self.intermediate)

    @property
    def weights(self) -> int:
        """Number of weights that every step reads once: all layers and the last projection."""
        return self.layer_weights + self.hidden * self.vocabulary

    def cache_bytes(self, tokens: int, element: int) -> int:
        """Count the bytes of a text's keys and values, with `element` bytes for each number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * element

    def prefill_operations(self, tokens: int) -> float:
        """Count multiplications and additions for one text, of which the last token is scored."""
        attention = 2.0 * self.layers * self.hidden * tokens**2  # half of the scores are hidden
        return 2.0 * (self.layer_weights * tokens + self.hidden * self.vocabulary) + attention


# As wide for their depth as the published 8B: 5.25 times the width between the two projections.
# The table is tied, as in the published small models.
SHAPES = {
    shape.name: shape
    for shape in (
        DecoderShape("apertus-0.5b", 26, 1024, 5376, 16, 8),
        DecoderShape("apertus-1.5b", 24, 2048, 10752, 32, 8),
        DecoderShape("apertus-tiny", 2, 64, 352, 4, 2, 512),
    )
}


def checkpoint(shape: DecoderShape) -> Path:
    """Return the folder of a model of random bfloat16 weights, made on first use."""
    folder = CACHE / f"{shape.name}-{shape.layers}x{shape.hidden}"
    if not (folder / "config.json").is_file():
        beside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        _random_model(shape).save_pretrained(beside)
        beside.rename(folder)
    return folder


def _random_model(shape: DecoderShape) -> Any:
    import transformers

    config = transformers.ApertusConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        # GGUF holds the frequencies of llama3 as a tensor; the plain ones need none.
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("norm.weight"):
                value.normal_(1.0, 0.1)
            elif value.ndim == 2:
                # xIELU squares what it gets: less for the projection behind it.
                share = 0.5 if "down_proj" in name else 1.0
                value.normal_(0.0, share / math.sqrt(value.shape[1]))
    return model
