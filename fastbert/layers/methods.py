"""Whether the methods of a module's class are those that the class was defined with.

`BertLayer.forward = f` changes what every layer computes, and no module shows a trace of it. So
methods are recorded where classes are defined, and compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

Method = tuple[type[nn.Module], str, Any]
Kind = TypeVar("Kind", bound=type[nn.Module])
# class -> its methods and those that it may hand a call on to; and what a module can override.
_DEFINED: dict[type[nn.Module], tuple[Method, ...]] = {}
_NAMES: dict[type[nn.Module], tuple[str, ...]] = {}


def as_defined(kind: Kind) -> Kind:
    """Record the methods of a class as those that it was defined with; returns the class."""
    lineage = [each for each in kind.__mro__ if issubclass(each, nn.Module)]
    names = dict.fromkeys(
        name
        for each in lineage
        if each.__module__.startswith("fastbert.")
        for name, value in vars(each).items()
        if isinstance(value, (FunctionType, staticmethod)) and not name.startswith("_")
    )
    names.pop("extra_repr", None)
    names["forward"] = None
    _NAMES[kind] = tuple(names)
    found: list[Method] = [(kind, name, getattr(kind, name)) for name in (*names, "__call__")]
    found += [(each, "forward", each.forward) for each in lineage[1:-1]]
    _DEFINED[kind] = tuple(found)
    return kind


for _kind in (nn.Linear, nn.LayerNorm, nn.Embedding, nn.ModuleList, nn.Sequential, nn.Dropout,
              nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU):  # fmt: skip
    as_defined(_kind)


def patched(kind: type[nn.Module]) -> bool:
    """Return whether a method of a class was replaced since it was defined."""
    # Looked at between graphs, where the plan is settled.
    return not torch.compiler.is_compiling() and not same(_DEFINED.get(kind, ()))


def overridable(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the methods that decide what a module computes."""
    return _NAMES.get(type(module), ("forward",))


def methods(modules: Iterable[nn.Module]) -> tuple[Method, ...]:
    """Read the methods of the classes of modules as they are now, for `same`."""
    found: dict[tuple[type[nn.Module], str], Any] = {}
    for kind in dict.fromkeys(map(type, modules)):
        for owner, name, _ in _DEFINED.get(kind, ((kind, "forward", None),)):
            found[owner, name] = getattr(owner, name)
    return tuple((owner, name, method) for (owner, name), method in found.items())


def same(recorded: Iterable[Method]) -> bool:
    """Return whether all of these methods are what they were."""
    for owner, name, method in recorded:  # noqa: SIM110 (half the time of all(), in every pass)
        if getattr(owner, name) is not method:
            return False
    return True
