"""Outputs answer by their own names, whatever base another library gives them.

From transformers 5.24 on, the base class of outputs looks for `past_key_values` under another name.
Outputs of ours get that base, since its pipelines ask for it, and must not inherit what it renames.
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastbert import outputs
from fastbert.outputs import CausalLMOutputWithPast, ModelOutput


def _renamed(key: Any) -> Any:
    return "cache" if key == "past_key_values" else key


class Renaming(OrderedDict):  # type: ignore[type-arg]
    """A base that keeps past_key_values under the name "cache"."""

    @property
    def past_key_values(self) -> Any:
        return self.cache  # type: ignore[attr-defined]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_renamed(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_renamed(key), value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(_renamed(name), value)

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(_renamed(key))

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_renamed(key), default)


@pytest.fixture
def renaming_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = ModelOutput.__bases__
    fake = SimpleNamespace(ModelOutput=Renaming)
    monkeypatch.setitem(sys.modules, outputs._THEIRS, fake)
    outputs.join_transformers()
    assert ModelOutput.__bases__ == (Renaming,)
    yield
    ModelOutput.__bases__ = before


@pytest.mark.usefixtures("renaming_base")
def test_a_field_keeps_its_name() -> None:
    logits, cache = torch.zeros(1), object()
    output = CausalLMOutputWithPast(None, logits, cache)
    assert list(output) == ["logits", "past_key_values"]
    assert output.past_key_values is cache
    assert output["past_key_values"] is cache
    assert output.get("past_key_values") is cache
    assert "past_key_values" in output and "loss" not in output
    assert output[1] is cache


@pytest.mark.usefixtures("renaming_base")
def test_a_field_is_set_and_replaced() -> None:
    output = CausalLMOutputWithPast(None, torch.zeros(1))
    assert output.past_key_values is None and output.get("past_key_values", 7) == 7
    for value in (object(), object()):
        output.past_key_values = value
        assert output["past_key_values"] is value and output.past_key_values is value
        output["past_key_values"] = None
        output["past_key_values"] = value
        assert output.past_key_values is value


@pytest.mark.usefixtures("renaming_base")
def test_an_output_is_made_anew_from_its_pairs() -> None:
    output = CausalLMOutputWithPast(None, torch.zeros(1), (torch.ones(1),))
    for again in (CausalLMOutputWithPast(dict(output)), pickle.loads(pickle.dumps(output))):
        assert torch.equal(again.past_key_values[0], torch.ones(1))
        assert list(again) == list(output)
