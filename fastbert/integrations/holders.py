"""Finding the modules in whatever object somebody hands over."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

from torch import nn

# A service holds a pipeline, which holds a model: deeper ones are not theirs to show.
_DEPTH = 4
# Of containers in a module's attributes.
_BESIDE = 2
_PLAIN = (str, bytes, int, float, complex, type(None), type)
_SEVERAL = (list, tuple, set, frozenset, deque)
# Where a module keeps what torch finds by itself.
_TORCHS = frozenset(vars(nn.Module()))


def modules_of(holder: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module in an object by its path, each once.

    Args:
        holder: a module, or an object with modules among its attributes, such as a pipeline;
            private ones of pydantic's classes count, and what containers, partial functions and
            methods hold. Modules in a list of a module are found too, though they are no parts.
    """
    seen: set[int] = set()
    for path, root in _roots(holder, "", _DEPTH, seen):
        yield from _modules_below(root, path, seen)


def _modules_below(root: nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    # compiled modules and wrappers hold theirs as a child like any other
    found = [
        (".".join(part for part in (path, name) if part), module)
        for name, module in root.named_modules()
        if id(module) not in seen
    ]
    seen.update(id(module) for _, module in found)
    yield from found
    for place, module in found:
        for name, value in vars(module).items():
            if name in _TORCHS or not isinstance(value, (nn.Module, Mapping, *_SEVERAL)):
                continue
            inner = f"{place}.{name}" if place else name
            for aside, other in _roots(value, inner, _BESIDE, seen):
                yield from _modules_below(other, aside, seen)


def _roots(holder: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if id(holder) in seen:
        return
    if isinstance(holder, nn.Module):
        yield path, holder
        return
    if depth == 0 or isinstance(holder, _PLAIN):
        return
    seen.add(id(holder))
    for name, value in _held(holder):
        yield from _roots(value, f"{path}.{name}" if path else name, depth - 1, seen)


def _held(holder: Any) -> list[tuple[str, Any]]:
    if isinstance(holder, Mapping):
        return [(str(name), value) for name, value in holder.items()]
    if isinstance(holder, _SEVERAL):
        return [(str(index), value) for index, value in enumerate(holder)]
    if isinstance(holder, MethodType):
        return [("__self__", holder.__self__)]
    found = {name: getattr(holder, name, None) for name in _slots(type(holder))}
    found.update(getattr(holder, "__dict__", {}))
    if isinstance(holder, functools.partial):
        found.update(func=holder.func, args=holder.args, keywords=holder.keywords)
    # Where pydantic's classes, those of LangChain and LlamaIndex among them, keep private names.
    found.update(getattr(holder, "__pydantic_private__", None) or {})
    return list(found.items())


def _slots(kind: type) -> list[str]:
    """Return the names of the attributes that a class has beside a dictionary."""
    if kind.__module__ == "builtins":
        return []
    declared = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
    names = [name for one in declared for name in ((one,) if isinstance(one, str) else one)]
    return [name for name in names if not name.startswith("__")]
