"""What generate() refuses before its first step: settings and prompts that mean nothing."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fastbert.generation.config import GenerationConfig
from fastbert.layers.checked import whole

# The least value of every setting that counts something; None for token ids, which may be open.
_LEAST: dict[str, int | None] = {
    "max_length": 1,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "bos_token_id": None,
    "pad_token_id": None,
}


def check_settings(settings: GenerationConfig) -> None:
    """Refuse numbers that count nothing.

    Raises:
        TypeError: for what is no whole number.
        ValueError: for one that is too small.
    """
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if value is not None:
            whole(name, value, least)
    for end in settings.ends():
        whole("eos_token_id, or each of its ids,", end)


def check_prompts(ids: Any, mask: Any) -> None:
    """Refuse prompts that are none, and warn of those whose padding stands behind them.

    Args:
        ids: what was given as input_ids.
        mask: what was given as attention_mask, or found; None where there is none.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for another shape.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"input_ids must be a torch tensor, not a {type(ids).__name__}; what a tokenizer "
            "returns is given as arguments: generate(**inputs)."
        )
    if ids.dim() != 2:
        raise ValueError(
            f"input_ids (batch, length) has 2 dimensions, but the shape {tuple(ids.shape)} was "
            "given."
        )
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a torch tensor, not a {type(mask).__name__}.")
    if mask.dim() != 2 or mask.shape[1] != ids.shape[1] or mask.shape[0] not in (1, ids.shape[0]):
        raise ValueError(
            f"generate needs an attention_mask of the shape {tuple(ids.shape)} of input_ids, but "
            f"this one has {tuple(mask.shape)}."
        )
    padded = (mask[:, -1:] == 0) & (mask != 0).any(dim=1, keepdim=True)
    if ids.shape[1] and bool(padded.any()):
        warnings.warn(
            "Padding stands behind a prompt, and what is written would stand behind that; pad on "
            "the left: padding_side='left' of the tokenizer.",
            stacklevel=4,
        )


def check_generator(generator: object) -> None:
    """Refuse a source of random numbers that is none, such as a seed.

    Raises:
        TypeError: saying how to make one of a seed.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator is a torch.Generator, not {generator!r}; of a seed: "
            "torch.Generator().manual_seed(seed)."
        )
