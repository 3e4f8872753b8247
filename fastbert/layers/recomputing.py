"""Recomputing a layer in the backward pass, keeping nothing of it but what it starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# From the part itself to a tensor in it: names of fields.
_Path = tuple[str, ...]


@dataclass(frozen=True)
class Recompute:
    """Say how layers are recomputed in the backward pass.

    Attributes:
        options: keyword arguments of torch's checkpoint().
        every: recompute every n-th layer only.
        offload: keep the layers' inputs in the main memory, rather than on an accelerator.
    """

    options: dict[str, Any] = field(default_factory=dict)
    every: int = 1
    offload: bool = False

    def __call__(self, layer: Callable[[Tensor], Any], hidden: Tensor) -> Any:
        """Compute a layer, keeping its inputs alone for the backward pass.

        Args:
            layer: the layer as a function of its hidden states. Where it is a dataclass, it may
                hold further tensors that need gradients, also within other dataclasses.
            hidden: the hidden states.
        """
        kept: Any = nullcontext()
        if self.offload and hidden.device.type != "cpu":
            kept = torch.autograd.graph.save_on_cpu(pin_memory=True, device_type=hidden.device.type)
        with kept:
            if self.options.get("use_reentrant") and torch.is_grad_enabled():
                return self._reentrant(layer, hidden)
            return checkpoint(layer, hidden, **self.options)

    def _reentrant(self, layer: Callable[[Tensor], Any], hidden: Tensor) -> Any:
        """Compute a layer whose backward pass runs within another one.

        That one knows of the function's arguments alone: it would give no gradients to a layer of
        which none needs any, as over frozen embeddings, and would go through whatever else the
        layer holds a second time.
        """
        held = dict(_needing_gradients(layer, ()))

        def run(hidden: Tensor, *tensors: Tensor) -> Any:
            part: Any = layer
            for path, tensor in zip(held, tensors, strict=True):
                part = _with(part, path, tensor)
            return part(hidden)

        if not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_(True)
        return checkpoint(run, hidden, *held.values(), **self.options)


def _needing_gradients(part: Any, path: _Path) -> Iterator[tuple[_Path, Tensor]]:
    if isinstance(part, Tensor):
        if part.requires_grad:
            yield path, part
    elif is_dataclass(part):
        for entry in fields(part):
            yield from _needing_gradients(getattr(part, entry.name), (*path, entry.name))


def _with(part: Any, path: _Path, tensor: Tensor) -> Any:
    if not path:
        return tensor
    name, *rest = path
    return replace(part, **{name: _with(getattr(part, name), tuple(rest), tensor)})
