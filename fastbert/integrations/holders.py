"""Finding the modules in whatever object somebody hands over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

# A service holds a pipeline, which holds a model: deeper ones are not theirs to show.
_DEPTH = 4
_PLAIN = (str, bytes, int, float, complex, type(None), type)


def modules_of(holder: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module in an object by its path, each once.

    Args:
        holder: a module, or an object with modules among its attributes, such as a pipeline;
            private ones of pydantic's classes count, and what lists, tuples and dictionaries hold.
    """
    seen: set[int] = set()
    for path, root in _roots(holder, "", _DEPTH, seen):
        # compiled modules and wrappers hold theirs as a child like any other
        for name, module in root.named_modules():
            if id(module) not in seen or module is root:
                seen.add(id(module))
                yield ".".join(part for part in (path, name) if part), module


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
    if isinstance(holder, (list, tuple)):
        return [(str(index), value) for index, value in enumerate(holder)]
    found = dict(getattr(holder, "__dict__", {}))
    # Where pydantic's classes, those of LangChain and LlamaIndex among them, keep private names.
    found.update(getattr(holder, "__pydantic_private__", None) or {})
    return list(found.items())
