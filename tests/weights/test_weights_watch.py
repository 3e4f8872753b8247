"""A watch that looks only at what was written to misses no write, however it is made.

The native `Watch` compares dictionaries and the methods of classes again only where CPython says
that somebody wrote to them. Each way to write is tried on a watch that has already found everything
unchanged, several times: the interpreter comes to store attributes by shortcuts of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastbert.kernels import native

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))


def watch(
    dicts: list[Any] | None = None,
    entries: list[Any] | None = None,
    methods: list[Any] | None = None,
) -> Any:
    """A watch of these, which has looked twice."""
    made = native.library.Watch(
        dicts or [], entries or [], methods or [], [], [],
        torch.Tensor.__dlpack_c_exchange_api__, torch.Tensor._version, torch.Tensor.grad,
    )  # fmt: skip
    assert made.unchanged(True) and made.unchanged(True)
    return made


WRITES: dict[str, Callable[[dict[str, Any]], object]] = {
    "set": lambda d: d.__setitem__("a", "other"),
    "new": lambda d: d.__setitem__("new", 1),
    "del": lambda d: d.__delitem__("a"),
    "pop": lambda d: d.pop("a"),
    "popitem": lambda d: d.popitem(),
    "clear": lambda d: d.clear(),
    "update": lambda d: d.update(a="other"),
    "or": lambda d: d.__ior__({"a": "other"}),
    "setdefault": lambda d: d.setdefault("new", 1),
    "dict's own": lambda d: dict.__setitem__(d, "a", "other"),
    "dict's own pop": lambda d: dict.pop(d, "b"),
}


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("way", WRITES)
def test_every_write_to_a_dictionary_is_seen(way: str, kind: type[dict[str, Any]]) -> None:
    held = kind(a="value", b="value")
    seen = watch([held])
    WRITES[way](held)
    assert not seen.unchanged(True)
    assert not seen.unchanged(True)


@pytest.mark.parametrize("way", ["new", "update", "or", "setdefault"])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_an_empty_dictionary_is_seen_to_be_filled(way: str, kind: type[dict[str, Any]]) -> None:
    held = kind()
    seen = watch([held])
    WRITES[way](held)
    assert not seen.unchanged(True)


def test_what_is_put_back_is_unchanged() -> None:
    held = {"a": object()}
    seen = watch([held])
    for _ in range(3):
        kept = held["a"]
        held["a"] = object()
        assert not seen.unchanged(True)
        held["a"] = kept
        assert seen.unchanged(True) and seen.unchanged(True)


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps: Any = 0.5

    def forward(self) -> int:
        return 1


class Derived(Part):
    pass


def test_attributes_are_seen_however_often_they_were_set() -> None:
    """A store that the interpreter has made a shortcut of is seen as the first one was."""
    part = Part()

    def store(value: object) -> None:
        part.eps = value

    def store_own(value: object) -> None:
        vars(part)["eps"] = value

    def store_past_torch(value: object) -> None:
        object.__setattr__(part, "eps", value)

    for way in (store, store_own, store_past_torch):
        for count in range(40):
            seen = watch(entries=[(vars(part), "eps"), (vars(part), "forward")])
            part.training = not part.training  # nothing that is asked for
            assert seen.unchanged(True)
            way(1.0 + count)
            assert not seen.unchanged(True)


class Plain:
    """Its attributes are stored without nn.Module's __setattr__, as a configuration's may be."""

    def __init__(self) -> None:
        self.eps: Any = 0.5


def test_attributes_of_plain_objects_are_seen() -> None:
    held = Plain()
    for count in range(40):
        seen = watch(dicts=[vars(held)])
        held.eps = 1.0 + count
        assert not seen.unchanged(True)
    seen = watch(dicts=[vars(held)])
    del held.eps
    assert not seen.unchanged(True)


def test_an_override_is_seen_on_each_of_many() -> None:
    """Writing to one dictionary of many is enough, whichever was compared before."""
    parts = [Part() for _ in range(50)]
    seen = watch(entries=[(vars(part), "forward") for part in parts])
    for part in parts:
        part.forward = lambda: 2  # type: ignore[method-assign]
        assert not seen.unchanged(True)
        del part.forward
        assert seen.unchanged(True)


def test_two_watches_of_one_dictionary_both_see_a_write() -> None:
    held: dict[str, Any] = {}
    seen = [watch([held]), watch([held])]
    held["a"] = 1
    assert not any(each.unchanged(True) for each in seen)
    assert watch([held]).unchanged(True)
    assert not any(each.unchanged(True) for each in seen)


@pytest.mark.parametrize("owner", [Part, nn.Module, Derived])
def test_methods_of_classes_and_their_bases_are_seen(
    owner: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        found = [(Derived, name, getattr(Derived, name)) for name in ("forward", "__call__")]
        seen = watch(methods=found)
        with monkeypatch.context() as patched:
            patched.setattr(owner, "unrelated", 1, raising=False)
            assert seen.unchanged(True)
            name = "__call__" if owner is nn.Module else "forward"
            patched.setattr(owner, name, lambda *_: 2)
            assert not seen.unchanged(True)
        assert seen.unchanged(True) and seen.unchanged(True)


def test_a_method_that_comes_in_between_or_goes_is_seen() -> None:
    class Between(Part):
        def forward(self) -> int:
            return 3

    seen = watch(methods=[(Derived, "forward", Derived.forward)])
    Derived.__bases__ = (Between,)
    assert not seen.unchanged(True)
    Derived.__bases__ = (Part,)
    assert seen.unchanged(True)
    seen = watch(methods=[(Between, "forward", Between.forward)])
    del Between.forward
    assert not seen.unchanged(True)
