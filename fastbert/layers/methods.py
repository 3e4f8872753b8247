"""Whether the methods of a module's class are those that the class was defined with.

`BertLayer.forward = f` changes what every layer computes, and no module shows a trace of it. So
methods are recorded where classes are defined, and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import TypeVar

import torch
from torch import nn

Kind = TypeVar("Kind", bound=type[nn.Module])


class Methods:
    """The methods of classes, as they are now.

    Args:
        classes: the names of the methods of each class.
    """

    def __init__(self, classes: Mapping[type[nn.Module], Iterable[str]]) -> None:
        self.classes = classes
        self.found = tuple(
            (kind, name, getattr(kind, name)) for kind, names in classes.items() for name in names
        )

    def hold(self) -> bool:
        """Return whether all are what they were."""
        for kind, name, method in self.found:  # noqa: SIM110 (all() takes longer, in every pass)
            if getattr(kind, name) is not method:
                return False
        return True


# class -> its methods, and those that they may hand a call on to; and what a module can override.
DEFINED: dict[type[nn.Module], Methods] = {}
_NAMES: dict[type[nn.Module], tuple[str, ...]] = {}


def as_defined(kind: Kind) -> Kind:
    """Record the methods of a class as those that it was defined with; returns the class."""
    lineage = [each for each in kind.__mro__ if issubclass(each, nn.Module)]
    # Of whole models, others call no more than forward.
    whole = any(each.__module__.startswith("fastbert.modeling.") for each in lineage)
    names = dict.fromkeys(
        name
        for each in lineage
        if each.__module__.startswith("fastbert.") and not whole
        for name, value in vars(each).items()
        if isinstance(value, (FunctionType, staticmethod)) and not name.startswith("_")
    )
    names.pop("extra_repr", None)
    names["forward"] = None
    _NAMES[kind] = tuple(names)
    DEFINED[kind] = Methods(
        {kind: (*names, "__call__")} | {each: ("forward",) for each in lineage[1:-1] if not whole}
    )
    return kind


for _kind in (nn.Linear, nn.LayerNorm, nn.Embedding, nn.ModuleList, nn.Sequential, nn.Dropout,
              nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU):  # fmt: skip
    as_defined(_kind)


def patched(kind: type[nn.Module]) -> bool:
    """Return whether a method of a class was replaced since it was defined."""
    recorded = DEFINED.get(kind)
    # While a pass is traced, nothing is looked at: that was done where its plan was settled.
    return recorded is not None and not torch.compiler.is_compiling() and not recorded.hold()


def replaced(module: nn.Module) -> bool:
    """Return whether a method that decides what a module computes was replaced, or its class's."""
    kind, own = type(module), vars(module)
    recorded = DEFINED.get(kind)
    if recorded is None or torch.compiler.is_compiling():
        return "forward" in own
    for owner, name, method in recorded.found:
        if getattr(owner, name) is not method or name in own:
            return True
    return False


def overridable(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the methods that decide what a module computes."""
    return _NAMES.get(type(module), ("forward",))


def methods(modules: Iterable[nn.Module]) -> Methods:
    """Read the methods of the classes of modules as they are now."""
    classes: dict[type[nn.Module], dict[str, None]] = {}
    for kind in dict.fromkeys(map(type, modules)):
        recorded = DEFINED.get(kind)
        found = {kind: ("forward",)} if recorded is None else recorded.classes
        for each, names in found.items():
            classes.setdefault(each, {}).update(dict.fromkeys(names))
    return Methods(classes)
