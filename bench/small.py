"""The small cases of the registry's ops, for whatever runs them often or slowly."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.ops import Op
from fastbert.ops._op import Arguments

# Largest number of elements of an argument: compute-sanitizer slows a kernel down a hundredfold.
SMALL = 100_000


def small_cases(op: Op, dtype: torch.dtype, count: int) -> list[tuple[str, Arguments]]:
    """Choose cases from all over an op's list, the smallest and the largest of the small included.

    Args:
        op: the op.
        dtype: of the cases' tensors.
        count: at most so many.

    Returns:
        Name and arguments of each, the smallest first.
    """
    cases = [(case.name, case.make(dtype)) for case in op.cases()]
    small = sorted((case for case in cases if elements(case[1]) <= SMALL), key=_size)
    picked = {round(i * (len(small) - 1) / max(count - 1, 1)) for i in range(count)}
    return [small[i] for i in sorted(picked)]


def elements(arguments: Arguments) -> int:
    """Return the number of elements of the largest tensor among an op's arguments."""
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    return max((tensor.numel() for tensor in tensors), default=0)


def _size(case: tuple[str, Arguments]) -> int:
    return elements(case[1])
