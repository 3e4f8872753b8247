"""Tiny Apertus models beside transformers' with the same weights.

transformers computes in float64 with sdpa; its norms, which are float32 whatever the model is, are
given float64 here, so that results agree to the last digits. Weights are large and no vector is
regular, since ordinary ones hide mistakes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.apertus import modeling_apertus

import fastbert

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "rope_parameters": LLAMA3,
}
PADDED = {
    "left": [[0, 0, 0, 1, 1, 1, 1], [1] * 7],
    "right": [[1, 1, 1, 1, 0, 0, 0], [1] * 7],
    "holes": [[1, 0, 1, 1, 0, 1, 1], [1] * 7],
}


def exact_norm(self: Any, hidden_states: Tensor) -> Tensor:
    wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (wide * scale).to(hidden_states.dtype)


def exact_norms() -> Iterator[None]:
    """Body of a fixture: transformers' norms in float64, as long as a test file runs."""
    before = modeling_apertus.ApertusRMSNorm.forward
    modeling_apertus.ApertusRMSNorm.forward = exact_norm
    yield
    modeling_apertus.ApertusRMSNorm.forward = before


@functools.cache
def _made(name: str, dtype: torch.dtype, seed: int, options: str) -> tuple[Any, Any]:
    sizes = {**SIZES, **eval(options)}  # a repr of plain values, made below
    torch.manual_seed(seed)
    theirs = getattr(transformers, name)(transformers.ApertusConfig(**copy.deepcopy(sizes)))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs = theirs.to(dtype).eval()
    ours = getattr(fastbert, name)(fastbert.ApertusConfig(**copy.deepcopy(sizes))).to(dtype).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict())
    assert not missing and not unexpected
    return ours, theirs


def pair(
    name: str = "ApertusForCausalLM",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> tuple[Any, Any]:
    """Return our model and transformers', of their own, with the same weights, in eval mode."""
    return copy.deepcopy(_made(name, dtype, seed, repr(options)))


def ids(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, SIZES["vocab_size"], shape, generator=generator)


def close(ours: Tensor, theirs: Tensor, bound: float = 1e-11) -> None:
    error = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30)
    assert ours.shape == theirs.shape
    assert float(error.detach()) < bound, float(error.detach())
