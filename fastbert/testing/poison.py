"""Uninitialised memory that cannot pass for a result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@contextlib.contextmanager
def poisoned_empty() -> Iterator[None]:
    """Let torch.empty and its relatives return memory full of NaN (integers: 0x55...).

    An element that no kernel wrote then shows.
    """
    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (Tensor, "new_empty"),
        ):
            original = getattr(owner, name)
            stack.enter_context(mock.patch.object(owner, name, _poisoning(original)))
        yield


def _poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        out = allocate(*args, **kwargs)
        if out.is_floating_point():
            return out.fill_(float("nan"))
        return out.fill_(0x55 if out.dtype != torch.bool else True)

    return poisoned
