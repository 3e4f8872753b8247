"""Calling a module that somebody may have replaced: with what it takes, whatever it answers.

A part is called as transformers calls it, save that it gets only those arguments which its forward
has names or room for.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastbert.layers.hooks import hooked

# A part that does not take these would compute something else than was asked for.
_NEEDED = {
    "past_key_values": "leave the cache out (use_cache=False)",
    "cache": "leave the cache out",
    "head_mask": "leave head_mask out",
    "encoder_hidden_states": "leave encoder_hidden_states out",
}


@dataclass(frozen=True)
class _Taken:
    """What a forward takes: names by position, how many positions, and whether any keyword."""

    positions: tuple[str, ...]
    count: float
    names: frozenset[str]
    any_keyword: bool


def call(
    part: Any, first: Any, following: Mapping[str, Any] | None = None, /, **keywords: Any
) -> Any:
    """Call a part with those arguments that it takes.

    Args:
        part: a module, or any callable. A plain nn.Sequential gives everything to its first
            module, and so on, each of the others getting the hidden states of the one before.
        first: the first argument.
        following: the arguments behind it in the order in which transformers gives them, by name.
        **keywords: what transformers gives by name; None is left out.

    Raises:
        ValueError: where the part takes no cache, head mask or encoder's hidden states, though one
            was given, and for an nn.Sequential with hooks.
    """
    following = following or {}
    if type(part) is nn.Sequential:
        return _call_in_turn(part, first, following, keywords)
    taken = _taken(part)
    positional: list[Any] = [first]
    named: dict[str, Any] = {}
    for name, value in following.items():
        place = len(positional)
        at = taken.positions[place] if place < len(taken.positions) else None
        ours = at in following or at in keywords
        if at == name or (at is None and place < taken.count):
            positional.append(value)
        elif at is not None and name not in taken.names and not ours:
            positional.append(value)  # its own name for the same thing
        elif value is not None:
            named[name] = value
    named |= {name: value for name, value in keywords.items() if value is not None}
    for name in [n for n in named if n not in taken.names and not taken.any_keyword]:
        if name in _NEEDED:
            raise ValueError(
                f"{name} was given, but the {type(part).__name__} in the place of a part of this "
                f"model takes none; {_NEEDED[name]}, or let its forward take it."
            )
        del named[name]
    return part(*positional, **named)


def call_by_name(part: Any, /, **arguments: Any) -> Any:
    """Call a part that transformers calls by names alone; the first argument may have another.

    Args:
        part: a module, or any callable.
        **arguments: as for `call`.
    """
    taken, first = _taken(part), next(iter(arguments))
    if type(part) is nn.Sequential or not (first in taken.names or taken.any_keyword):
        return call(part, arguments.pop(first), None, **arguments)
    given = {name: value for name, value in arguments.items() if value is not None}
    return part(**{n: v for n, v in given.items() if n in taken.names or taken.any_keyword})


def _call_in_turn(
    parts: nn.Sequential, first: Any, following: Mapping[str, Any], keywords: Mapping[str, Any]
) -> Any:
    if hooked(parts):
        raise ValueError(
            "An nn.Sequential with hooks stands in the place of a part of this model; it cannot "
            "hand on the attention mask. Hook the modules in it, or write a module of your own."
        )
    answer = first
    for index, part in enumerate(parts):
        answer = call(part, answer if index == 0 else hidden_of(answer), following, **keywords)
    return answer


def _taken(part: Any) -> _Taken:
    if isinstance(part, nn.Module) and "forward" not in vars(part):
        kind: Any = type(part)
        return _taken_by_class(kind)
    return _read(getattr(part, "forward", part), 0)


@functools.lru_cache(maxsize=256)
def _taken_by_class(kind: Any) -> _Taken:
    return _read(kind.forward, 1)


def _read(forward: Any, bound: int) -> _Taken:
    parameters = list(inspect.signature(forward).parameters.values())[bound:]
    positions = tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return _Taken(
        positions,
        math.inf if many else len(positions),
        frozenset(
            p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def hidden_of(answer: Any) -> Tensor:
    """Return the hidden states in what a part answered: a tensor, a tuple, or a ModelOutput.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(answer, Tensor):
        return answer
    found = getattr(answer, "last_hidden_state", None)
    if found is None and isinstance(answer, Mapping):
        found = next(iter(answer.values()), None)
    elif found is None and isinstance(answer, (tuple, list)):
        found = answer[0] if answer else None
    if not isinstance(found, Tensor):
        raise TypeError(
            "A module in the place of a part of this model must return hidden states, or a tuple "
            f"or ModelOutput that begins with them, but returned a {type(answer).__name__}."
        )
    return found


@dataclass
class Weights:
    """The attention weights of modules that were called, in the order of their calls."""

    own: list[Tensor] = field(default_factory=list)
    cross: list[Tensor] = field(default_factory=list)


_listening: ContextVar[Weights | None] = ContextVar("attention weights", default=None)


@contextmanager
def listening() -> Iterator[Weights]:
    """Collect the attention weights of the modules that are called within the block."""
    heard = Weights()
    token = _listening.set(heard)
    try:
        yield heard
    finally:
        _listening.reset(token)


def tell(weights: Any, cross: bool) -> None:
    """Hand attention weights (batch, heads, queries, keys) to whoever listens."""
    heard = _listening.get()
    if heard is not None and isinstance(weights, Tensor):
        (heard.cross if cross else heard.own).append(weights)
