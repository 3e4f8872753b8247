"""Whether tensors still hold what was read from them.

torch counts the writes to a tensor as versions, through views too. Two kinds of writes go
uncounted. A fused optimizer (torch 2.13) writes without a version, but only to parameters that have
a gradient: whoever packed weights compares all their bytes once a gradient may have reached them
(`Gradients`, `uncounted`). Raw writes, through `.data`, NumPy, DLPack or a storage, are told by
`model.refresh()`. FASTBERT_CHECK_WEIGHTS=1 finds them: then all bytes are compared before every
pass, and what was written raw is named once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastbert.kernels import cpu, native
from fastbert.ops.operands import obstacle

CHECK_ALWAYS = os.environ.get("FASTBERT_CHECK_WEIGHTS", "0") not in ("", "0")
_log = logging.getLogger("fastbert")
_warned: set[str] = set()


def version(tensor: Tensor) -> int:
    """Return torch's count of writes to a tensor; 0 for one made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def stamp(tensor: Tensor) -> tuple[Any, ...]:
    """Describe what a tensor is, where it lies and how often it was written to."""
    place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    return (type(tensor), *place, 0 if tensor.is_inference() else tensor._version)


def uncounted(tensors: Iterable[Tensor]) -> bool:
    """Return whether one of the tensors may be written to now without a new version.

    A fused optimizer may, which needs a gradient; and so may anyone where the tensor was made in
    inference mode.
    """
    return any(t.is_inference() or (t.is_leaf and t.grad is not None) for t in tensors)


class Kept:
    """What a module keeps of its weights in another form; `PreTrainedModel.refresh` clears it."""

    def clear(self) -> None:
        """Forget it; the next pass makes it again."""
        raise NotImplementedError


class Gradients:
    """Counts the backward passes that may have given some weights gradients.

    The count rises when gradients flow back into the results of a pass, not when the pass is made:
    between the two the weights may be used, and found unchanged.

    Attributes:
        passes: backward passes counted so far.
        traced: a differentiable pass was made within torch.compile, whose graphs keep no hook, so
            that the pass itself counts. A traced forward sets this, and reads nothing.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.traced = False

    @property
    def count(self) -> int:
        """A number that is greater after every backward pass."""
        if self.traced:
            self.traced = False
            self.passes += 1
        return self.passes

    def flowed(self, *_: object) -> None:
        """Count a backward pass."""
        self.passes += 1

    def follow(self, *results: Tensor | None) -> None:
        """Count the backward passes from these tensors, whichever of them they begin at."""
        for result in results:
            if result is not None and result.grad_fn is not None:
                result.grad_fn.register_prehook(self.flowed)


class Contents:
    """What tensors held at one time, compared whole where versions do not tell.

    Args:
        tensors: whose bytes count.
        gradients: counts the backward passes that may reach them.
        names: of the tensors, for warnings.
        expected: whether comparisons will be asked for.

    Bytes are read now only where a comparison is to be expected; one that comes unexpectedly finds
    that the tensors may have changed.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        gradients: Gradients,
        names: Sequence[str],
        expected: bool = False,
    ):
        self._tensors, self._names = tensors, names
        self._gradients, self._seen = gradients, gradients.count
        expected = expected or CHECK_ALWAYS or self._seen > 0 or uncounted(tensors)
        self._held = [_bytes_of(tensor) for tensor in tensors] if expected else None

    def same(self, suspicious: bool) -> bool:
        """Whether the tensors hold the same bytes.

        Args:
            suspicious: `uncounted` holds for the tensors; else, without a backward pass since the
                last comparison, nothing needs to be compared.
        """
        gradients = self._gradients
        count = gradients.count if gradients.traced else gradients.passes
        explained = suspicious or count != self._seen
        if not explained and not CHECK_ALWAYS:
            return True
        if self._held is None:
            return False
        for tensor, held, name in zip(self._tensors, self._held, self._names, strict=True):
            if not _same_bytes(held, _bytes_of(tensor)):
                if not explained:
                    _warn(name)
                return False
        self._seen = count
        return True


def _warn(name: str) -> None:
    if name not in _warned:
        _warned.add(name)
        _log.warning(
            "%s was written to in a way that torch does not count (.data, NumPy, DLPack or its "
            "storage). FASTBERT_CHECK_WEIGHTS=1 noticed it; without that, call model.refresh() "
            "after such a write, or fastbert.accelerate(model) again where the model is another "
            "library's.",
            name,
        )


def _bytes_of(tensor: Tensor) -> bytes | Tensor:
    """Return a fingerprint of a tensor on the CPU, a copy of any other."""
    if tensor.device.type != "cpu" or native.reason() is not None:
        return tensor.detach().clone()
    cpu.use_torch_threads()
    return native.library.fingerprint(tensor.data_ptr(), readable_bytes(tensor))


def _same_bytes(one: bytes | Tensor, other: bytes | Tensor) -> bool:
    if isinstance(one, bytes) or isinstance(other, bytes):
        return one is other or one == other
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    # As bytes, since NaN differs from itself.
    one, other = (t.contiguous().view(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(one, other)


def readable_bytes(tensor: Tensor) -> int:
    """Bytes from a tensor's address to the end of its last element; 0 where they are not there."""
    if tensor.numel() == 0 or obstacle(tensor) is not None:
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
