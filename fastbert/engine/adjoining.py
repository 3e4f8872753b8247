"""Weights of several projections as parts of one tensor, without a copy beside the model's own.

One product computes queries, keys and values, so their weights have to lie behind one another. A
copy of them would cost its size, and a raw write to the parameters (`.data`, of which torch keeps
no count) would leave it as it was: a model of half new, half old weights. So the parameters
themselves become parts of one storage, once, where nobody else holds what they held.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastbert.layers.linear import Linear, Projection


def adjoining(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the tensors as one, along their first dimension; None where they do not adjoin."""
    first = tensors[0]
    storage, place = first.untyped_storage()._cdata, first.storage_offset()
    for tensor in tensors:
        alike = (tensor.shape[1:], tensor.dtype) == (first.shape[1:], first.dtype)
        here = (tensor.untyped_storage()._cdata, tensor.storage_offset()) == (storage, place)
        if not (alike and here and tensor.is_contiguous()):
            return None
        place += tensor.numel()
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return first.detach().as_strided(shape, first.stride(), first.storage_offset())


def adjoin(parts: Sequence[Projection]) -> bool:
    """Move weights and biases of projections into one storage each, where that changes nothing.

    They stay where they are when anything but the parameter refers to the memory: a tied weight,
    `.data` or a state dict that was taken before; what is written there must go on to count.

    Returns:
        Whether any was moved.
    """
    linear = [part for part in parts if type(part) is Linear]
    if len(linear) != len(parts):
        return False
    weights = [part.weight for part in linear]
    biases = [part.bias for part in linear if part.bias is not None]
    moved = _move(weights)
    return (len(biases) == len(parts) and _move(biases)) or moved


def read_in_place(parts: Sequence[Projection]) -> bool:
    """Return whether a GPU's encoder reads the weights and biases of projections where they are."""
    linear = [part for part in parts if type(part) is Linear]
    biases = [part.bias for part in linear if part.bias is not None]
    return (
        len(linear) == len(parts)
        and adjoining([part.weight for part in linear]) is not None
        and (not biases or (len(biases) == len(parts) and adjoining(biases) is not None))
    )


def _move(tensors: Sequence[Tensor]) -> bool:
    if adjoining(tensors) is not None or not all(map(_free, tensors)):
        return False
    if len({(tensor.shape[1:], tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        return False
    # Tensors made in inference mode could not be written to outside of it.
    with torch.inference_mode(False), torch.no_grad():
        joined = torch.cat([tensor.detach() for tensor in tensors])
        start = 0
        for tensor in tensors:
            tensor.data = joined[start : start + tensor.shape[0]]
            start += tensor.shape[0]
    return True


def _free(tensor: Tensor) -> bool:
    if type(tensor) is not nn.Parameter or tensor.is_inference() or not tensor.is_contiguous():
        return False
    return _holders(tensor) <= _holders(torch.empty(1, device="cpu"))


def _holders(tensor: Tensor) -> int:
    count: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return count
