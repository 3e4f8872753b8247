"""Modules of sentence-transformers behind an accelerated encoder, on the caller's thread alone.

Their operators would wake torch's threads once a batch, which then spin on the cores that the
kernels of the next one need. As with encoders, the class of the instance is a subclass of its own
class that differs in `forward`, and everything that looks at it finds sentence-transformers' own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastbert.integrations.families import base_of
from fastbert.integrations.holders import modules_of
from fastbert.kernels.openmp import on_one_thread
from fastbert.locks import Lock

# Those that are nothing but operators of torch on each element; a Dense is a product, which takes
# as many threads as it can get.
_KINDS = ("Pooling", "Normalize", "LayerNorm")
_READ = ("token_embeddings", "sentence_embedding")


def swap_behind(model: Any) -> None:
    """Let the modules of sentence-transformers in a model leave torch's threads asleep."""
    for _, module in list(modules_of(model)):
        kind = type(module)
        if kind.__name__ in _KINDS and kind.__module__.startswith("sentence_transformers."):
            module.__class__ = _quiet_class(base_of(kind))


def swap_back_behind(model: Any) -> None:
    """Make these modules the ones that they were."""
    for _, module in list(modules_of(model)):
        if "fastbert_quiet" in type(module).__dict__:
            module.__class__ = base_of(type(module))


_making = Lock()
_classes: dict[type[nn.Module], Any] = {}


def _quiet_class(base: type[nn.Module]) -> Any:
    with _making:
        if base not in _classes:
            _classes[base] = _make(base)
        return _classes[base]


def _make(base: Any) -> Any:
    original = base.forward

    @functools.wraps(original)
    def forward(self: Any, features: Any, *args: Any, **kwargs: Any) -> Any:
        read = _largest(features)
        # Where gradients are wanted, the layers are operators of torch themselves.
        if read is None or torch.is_grad_enabled() or torch._C._get_tracing_state():
            return original(self, features, *args, **kwargs)
        with on_one_thread(read):
            return original(self, features, *args, **kwargs)

    def reduce(self: Any, protocol: int) -> Any:
        return _rebuild, (base,), vars(self)

    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "fastbert_base": base,
        "fastbert_quiet": True,
        "forward": forward,
        "__reduce_ex__": reduce,
    }
    return type(base)(base.__name__, (base,), namespace)


def _largest(features: Any) -> Tensor | None:
    if not isinstance(features, Mapping):
        return None
    found = next((features[name] for name in _READ if name in features), None)
    return found if isinstance(found, Tensor) else None


def _rebuild(base: type[nn.Module]) -> Any:
    module = base.__new__(base)
    module.__class__ = _quiet_class(base)
    return module
