"""Methods of classes define what a module computes, and anyone may replace them.

`BertLayer.forward = f` leaves every module as it was. Classes record the methods that they were
defined with; what was replaced is called. What is right comes from transformers' classes with the
same method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.bert import modeling_bert

import fastbert
from fastbert.branches import bert as branches
from fastbert.layers.linear import Linear
from fastbert.layers.norm import LayerNorm
from fastbert.runtime.plan import Unavailable
from tests.test_called_parts import IDS, pair, same


def halved(old: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = old(self, *args, **kwargs)
        if hasattr(out, "last_hidden_state"):
            out.last_hidden_state = 0.5 * out.last_hidden_state
            return out
        return (0.5 * out[0], *out[1:]) if isinstance(out, tuple) else 0.5 * out

    return forward


CLASSES = ("BertLayer", "BertSelfAttention", "BertSelfOutput", "BertAttention", "BertEncoder",
           "BertIntermediate", "BertEmbeddings", "BertPooler",
           "BertPredictionHeadTransform")  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_patched_classes(name: str, before: bool, monkeypatch: Any) -> None:
    task = "ForMaskedLM" if name == "BertPredictionHeadTransform" else "Model"
    theirs, ours = pair("bert", task)
    kinds = [
        next(type(m) for m in model.modules() if type(m).__name__ == name)
        for model in (theirs, ours)
    ]
    if not before:
        ours(IDS)
    with torch.no_grad():
        plain = ours(IDS)[0]
        for kind in kinds:
            monkeypatch.setattr(kind, "forward", halved(kind.forward))
        same(theirs, ours)
        assert "called as a module" in fastbert.explain(ours)
        monkeypatch.undo()
        same(theirs, ours)
        assert torch.equal(ours(IDS)[0], plain)
        assert "called as a module" not in fastbert.explain(ours)


@pytest.mark.parametrize("kind", [nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout])
@pytest.mark.parametrize("task", ["Model", "ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.parametrize("family", ["bert", "flaubert"])
def test_patched_classes_of_torch(family: str, task: str, kind: Any, monkeypatch: Any) -> None:
    if family == "flaubert":
        if kind is nn.Dropout:
            pytest.skip("it has none in its layers")
        task = {"ForMaskedLM": "WithLMHeadModel"}.get(task, task)
    theirs, ours = pair(family, task)
    with torch.no_grad():
        plain = ours(IDS)[0]
        monkeypatch.setattr(kind, "forward", halved(kind.forward))
        same(theirs, ours)
        assert not torch.equal(ours(IDS)[0], plain)
        monkeypatch.undo()
        assert torch.equal(ours(IDS)[0], plain)


@pytest.mark.parametrize("kind", [Linear, LayerNorm])
def test_own_projections(kind: Any, monkeypatch: Any) -> None:
    theirs, ours = pair("bert")
    parent = kind.__mro__[1]
    with torch.no_grad():
        ours(IDS)
        patch = halved(parent.forward)
        monkeypatch.setattr(kind, "forward", patch)
        found = ours(IDS)
        monkeypatch.undo()
        monkeypatch.setattr(parent, "forward", patch)
        torch.testing.assert_close(found[0], theirs(IDS)[0], rtol=0, atol=1e-5)


def test_patched_helpers(monkeypatch: Any) -> None:
    """feed_forward_chunk is what people replace in a layer, of a class or of one module."""

    def chunk(self: Any, attention_output: Tensor) -> Tensor:
        return self.intermediate(attention_output)[..., :24]

    theirs, ours = pair("bert")
    with torch.no_grad():
        ours(IDS)
        for kind in (modeling_bert.BertLayer, branches.BertLayer):
            monkeypatch.setattr(kind, "feed_forward_chunk", chunk)
        same(theirs, ours)
        monkeypatch.undo()
        same(theirs, ours)
        for model in (theirs, ours):
            layer = model.encoder.layer[1]
            layer.feed_forward_chunk = functools.partial(chunk, layer)
        same(theirs, ours)


def test_calls_that_were_replaced(monkeypatch: Any) -> None:
    theirs, ours = pair("bert")
    with torch.no_grad():
        ours(IDS)
        for kind in (modeling_bert.BertIntermediate, branches.BertIntermediate):
            monkeypatch.setattr(kind, "__call__", halved(kind.__call__))
        same(theirs, ours)


def test_strict_refuses_patched_classes(monkeypatch: Any) -> None:
    _, ours = pair("bert")
    ours.set_backend("cpu", strict=True)
    with torch.no_grad():
        ours(IDS)
        monkeypatch.setattr(branches.BertLayer, "forward", halved(branches.BertLayer.forward))
        with pytest.raises(Unavailable, match=r"encoder\.layer\.0 has hooks, or another forward"):
            ours(IDS)
