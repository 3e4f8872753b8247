"""Packing holds what it makes on the way for one layer at a time, and int8 weights nowhere else.

The mechanism: prepared models are packed layer by layer, each into its final place, and whatever is
joined or quantised for a layer is gone when the next one's turn comes. An accelerated encoder in
int8 so holds its parameters, and beside them only what kernels packed. Measured as the peak of a
process of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import accelerating
import pytest
import torch
from torch import Tensor

import fastbert
from bench import packing
from fastbert.engine import cpu_encoder
from fastbert.integrations import int8
from fastbert.integrations.accelerate import accelerated_in
from fastbert.layers.linear import Int8Linear
from fastbert.runtime import versions

IDS = torch.arange(3, 23).reshape(2, 10)


@pytest.mark.parametrize(("precision", "packed"), [("int8", 0.254), ("float32", 1.0)])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_layer_at_a_time(precision: str, packed: float) -> None:
    found = packing.measure("layers", precision, 1)
    beside = (found.peak - 1) / found.weights
    # Queries, keys and values joined are a quarter of a layer, and int8 weights of it too: 0.04 of
    # six layers. Of all layers at once, it would be 0.25.
    assert packed - 0.02 <= beside <= packed + 0.1


def computed(model: Any, **options: Any) -> list[Tensor]:
    with torch.no_grad():
        found = model(IDS, **options)
    return [found.last_hidden_state, *(found.hidden_states or ())]


def accelerated(model: Any) -> Any:
    return fastbert.accelerate(model, quantization="int8")


def projections(model: Any) -> list[Int8Linear]:
    (_, module, server), *_ = accelerated_in(model)
    return [part for part in server.computing(module, False).modules() if type(part) is Int8Linear]


def test_the_weights_are_those_of_a_model_that_holds_them(tmp_path: Any) -> None:
    theirs = accelerating.plain("BertModel")
    theirs.save_pretrained(tmp_path)
    ours = fastbert.BertModel.from_pretrained(tmp_path, quantization="int8")
    accelerated(theirs)
    assert torch.equal(computed(theirs)[0], computed(ours)[0])
    parts = projections(theirs)
    assert parts and all(part.qweight is None and part._made is None for part in parts)
    # Op by op, in inference mode first: what is made there serves outside of it.
    with torch.inference_mode():
        theirs(IDS, output_hidden_states=True)
    for one, other in zip(
        computed(theirs, output_hidden_states=True),
        computed(ours, output_hidden_states=True),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert all(part._made is not None for part in projections(theirs))


def test_where_nothing_is_packed_the_weights_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = accelerated(accelerating.plain("BertModel"))
    expected = computed(model)[0]
    fastbert.restore(model)
    monkeypatch.setattr(int8, "on_cpu", lambda _: False)  # as on a GPU
    assert torch.equal(computed(accelerated(model))[0], expected)
    assert all(part.qweight.dtype is torch.int8 for part in projections(model))


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_packing_that_fails_half_way_leaves_the_model_as_it_was(
    quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = accelerating.plain("BertModel", num_hidden_layers=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fastbert.accelerate(model, quantization=quantization)
    sources = []

    def failing(*given: Any) -> Any:
        sources.append(given)
        if len(sources) == 2:
            raise MemoryError("no room for the second layer")
        return whole(*given)

    whole = cpu_encoder.block_source
    monkeypatch.setattr(cpu_encoder, "block_source", failing)
    with pytest.raises(MemoryError, match="second layer"):
        computed(model)
    assert len(sources) == 2
    monkeypatch.undo()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    found = computed(model)[0]
    fresh = accelerating.plain("BertModel", num_hidden_layers=3)
    fresh.load_state_dict(before)
    fastbert.accelerate(fresh, quantization=quantization)
    assert torch.equal(found, computed(fresh)[0])


def replaced(layer: Any, bias: Tensor | None) -> None:
    layer.bias = None if bias is None else torch.nn.Parameter(bias)


def written(layer: Any, bias: Tensor | None) -> None:
    layer.bias.zero_() if bias is None else layer.bias.copy_(bias)


def moved(layer: Any, bias: Tensor | None) -> None:
    layer.bias.data = torch.zeros_like(layer.bias) if bias is None else bias


@pytest.mark.parametrize("change", [replaced, written, moved])
@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("name", ["attention.self.value", "intermediate.dense"])
def test_biases_are_those_of_the_model(change: Any, gone: bool, name: str) -> None:
    model = accelerated(accelerating.plain("BertModel"))
    layer = model.encoder.layer[0].get_submodule(name)
    old = computed(model)[0]
    with torch.no_grad():
        change(layer, None if gone else torch.randn_like(layer.bias))
    found = computed(model)[0]
    assert not torch.equal(found, old)
    fastbert.restore(model)
    assert torch.equal(found, computed(accelerated(model))[0])


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_no_bytes_are_compared_in_inference_mode(
    monkeypatch: pytest.MonkeyPatch, quantization: str | None
) -> None:
    """What is kept is made outside of it: tensors of inference mode have no versions to compare."""
    model = fastbert.accelerate(accelerating.plain("BertModel"), quantization=quantization)
    read: list[Tensor] = []
    original = versions._bytes_of
    monkeypatch.setattr(versions, "_bytes_of", lambda t: (read.append(t), original(t))[1])
    with torch.inference_mode():
        for _ in range(3):
            model(IDS)
    assert read == []
