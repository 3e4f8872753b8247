"""The likeliest token, which greedy search appends."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.openmp import on_one_thread

_BLOCK = 256


def likeliest(scores: Tensor) -> Tensor:
    """Return the index of the highest score of every row: of the first one, where several are.

    The same as `argmax(dim=-1)`, where a NaN is the highest. That compares one value after the
    other; maxima of whole blocks are found a vector at a time, in a sixth of the time for
    vocabularies of 131072 tokens.

    Args:
        scores: (..., vocabulary), of any floating dtype.

    Returns:
        int64 (...).
    """
    vocabulary = scores.shape[-1]
    if scores.device.type != "cpu" or vocabulary % _BLOCK or vocabulary == 0:
        return scores.argmax(dim=-1)
    blocks = scores.reshape(*scores.shape[:-1], vocabulary // _BLOCK, _BLOCK)
    with on_one_thread(scores):
        block = blocks.amax(dim=-1).argmax(dim=-1, keepdim=True)
        inside = torch.take_along_dim(blocks, block[..., None], dim=-2).squeeze(-2).argmax(dim=-1)
    return block.squeeze(-1) * _BLOCK + inside
