"""Building models for their structure alone, without memory, random numbers or time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastbert.layers.unfilled import unfilled

Built = TypeVar("Built")


class _Unwritten(TorchFunctionMode):
    """Skips what initialisation would write to tensors that have no memory.

    torch has no such kernels for the meta device: it imports a Python form of each (2 s at first).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def structure(build: Callable[[], Built]) -> Built:
    """Call a constructor with nothing allocated: all its parameters are on the meta device."""
    with unfilled(), torch.device("meta"), _Unwritten():
        return build()
