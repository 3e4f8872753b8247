"""ALIGN twice, ours and transformers', with the same weights, small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import fastbert

TEXT: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# Three stages: without expansion, with stride 2 and a larger window, and with a skip.
VISION: dict[str, Any] = {
    "width_coefficient": 0.5,
    "depth_coefficient": 1.2,
    "hidden_dim": 16,
    "in_channels": [32, 16, 24],
    "out_channels": [16, 24, 32],
    "kernel_sizes": [3, 5, 3],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 2, 1],
    "expand_ratios": [1, 6, 6],
    "drop_connect_rate": 0.0,
}
WHOLE: dict[str, Any] = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}


def perturbed(model: Any) -> Any:
    """Give every tensor values that count, so that no part can be left out unseen."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.01 + torch.rand(buffer.shape, generator=generator))
    return model


def theirs(**vision: Any) -> Any:
    torch.manual_seed(0)
    values = {**WHOLE, "vision_config": {**VISION, **vision}}
    return perturbed(transformers.AlignModel(transformers.AlignConfig(**values))).eval()


def pair(folder: Path, **vision: Any) -> tuple[Any, Any]:
    other = theirs(**vision)
    other.save_pretrained(folder)
    return fastbert.AlignModel.from_pretrained(folder), other


def inputs(texts: int = 3, images: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(1, 61, (texts, 7), generator=generator),
        "attention_mask": torch.ones(texts, 7, dtype=torch.long),
        "pixel_values": torch.randn(images, 3, 33, 40, generator=generator),
    }
