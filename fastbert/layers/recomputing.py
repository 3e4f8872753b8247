"""Recomputing a layer in the backward pass, keeping nothing of it but what it starts from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# From the part itself to a tensor in it: names of fields, keys and places.
_Path = tuple[Any, ...]


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
    elif isinstance(part, Mapping):
        for key, value in part.items():
            yield from _needing_gradients(value, (*path, key))
    elif is_dataclass(part):
        for entry in fields(part):
            yield from _needing_gradients(getattr(part, entry.name), (*path, entry.name))


def _with(part: Any, path: _Path, tensor: Tensor) -> Any:
    if not path:
        return tensor
    name, *rest = path
    if isinstance(part, Mapping):
        return {**part, name: _with(part[name], tuple(rest), tensor)}
    return replace(part, **{name: _with(getattr(part, name), tuple(rest), tensor)})


# Calls a layer's forward so that it is computed again in the backward pass.
Runner = Callable[[Callable[[Tensor], Any], Tensor], Any]
_runner: ContextVar[Runner | None] = ContextVar(
    "how a layer that is called is recomputed", default=None
)


@contextmanager
def recomputing(run: Runner | None) -> Iterator[None]:
    """Have the forwards of layers that are called within the block run by `run`; None: as ever."""
    token = _runner.set(run)
    try:
        yield
    finally:
        _runner.reset(token)


def recomputable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let the forward of a class of layers be recomputed where `recomputing` asks for it.

    It is the forward and not the call of a module, as in transformers, so that hooks on the layer
    run once, and see hidden states that have gradients.
    """

    @functools.wraps(forward)
    def run_as_asked(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = _runner.get()
        if run is None:
            return forward(self, hidden_states, *args, **kwargs)
        with recomputing(None):  # a layer within this one is recomputed with it
            part = _Forward(functools.partial(forward, self), dict(enumerate(args)), kwargs)
            return run(part, hidden_states)

    return run_as_asked


@dataclass(frozen=True)
class _Forward:
    """The forward of a layer that was called as a module, as a function of the hidden states."""

    forward: Callable[..., Any]
    args: Mapping[int, Any]
    keywords: Mapping[str, Any]

    def __call__(self, hidden: Tensor) -> Any:
        return self.forward(hidden, *self.args.values(), **self.keywords)
