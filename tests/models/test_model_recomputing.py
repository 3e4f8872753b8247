"""Recomputed layers: the same gradients to the last digit, and little kept for the backward pass.

A layer is a function of its hidden states and of whatever else it holds that needs gradients (what
distances add to the scores, an encoder's hidden states). torch's reentrant way sees only what is
handed over as an argument.
"""

from __future__ import annotations

from typing import Any

import apertus_pair
import oracle
import pytest
import torch
from torch import Tensor

from fastbert.layers.kv_cache import DynamicCache, EncoderDecoderCache

FAMILIES = [f for f in oracle.FAMILIES if f != "Flaubert"]
CHECKED = [*(f"{family}Model" for family in FAMILIES), "BertForMaskedLM"]


def step(model: Any, **inputs: Any) -> tuple[dict[str, Tensor], int]:
    """Return the gradients of a step, and the bytes that were kept for its backward pass."""
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(5)
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**inputs)
    output[0].square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found, sum(kept.values())


def check(model: Any, reentrant: bool, inputs: dict[str, Any], share: float) -> None:
    wanted, much = step(model, **inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    found, little = step(model, **inputs)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert little < share * much
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    again, as_before = step(model, **inputs)
    assert as_before == much and all(torch.equal(again[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CHECKED)
def test_gradients_are_the_same_and_little_is_kept(name: str, reentrant: bool) -> None:
    """With dropouts: what is dropped is dropped again."""
    model = oracle.pair(name)[1].train()
    inputs = {"input_ids": oracle.random_ids(), "attention_mask": oracle.padded_mask()}
    check(model, reentrant, inputs, 0.5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_over_frozen_embeddings_learn(reentrant: bool) -> None:
    model = oracle.pair("MPNetModel")[1].train()
    model.embeddings.requires_grad_(False)
    model.encoder.layer[0].requires_grad_(False)
    inputs = {"input_ids": oracle.random_ids(), "attention_mask": oracle.padded_mask()}
    check(model, reentrant, inputs, 0.6)
    assert model.encoder.relative_attention_bias.weight.grad.abs().max() > 0
    assert model.encoder.layer[1].output.dense.weight.grad.abs().max() > 0
    assert model.encoder.layer[0].output.dense.weight.grad is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_hooked_layer_is_recomputed_too(reentrant: bool) -> None:
    model = oracle.pair("MPNetModel", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)[1]
    model.train().encoder.layer[1].register_forward_hook(lambda _module, _inputs, _output: None)
    inputs = {"input_ids": oracle.random_ids(), "attention_mask": oracle.padded_mask()}
    check(model, reentrant, inputs, 0.5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_an_encoder_behind_cross_attention_gets_its_gradients(reentrant: bool) -> None:
    """The layers' shares are added up in another order, so the last digit may differ."""
    options = {"is_decoder": True, "add_cross_attention": True}
    model = oracle.pair("BertLMHeadModel", **options)[1].train()
    source = torch.randn(oracle.BATCH, 5, oracle.HIDDEN, dtype=torch.float64, requires_grad=True)
    found = []
    for recomputed in (False, True):
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        source.grad = None
        step(model, input_ids=oracle.random_ids(), encoder_hidden_states=source * 2)
        found.append(source.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_apertus(reentrant: bool) -> None:
    model = apertus_pair.pair()[0].train()
    check(model, reentrant, {"input_ids": apertus_pair.ids(3, 7), "use_cache": False}, 0.5)


def test_flauberts_layers_are_no_modules_to_recompute() -> None:
    with pytest.raises(ValueError, match="does not support"):
        oracle.pair("FlaubertModel")[1].gradient_checkpointing_enable()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["BertModel", "DistilBertModel", "ElectraModel", "MPNetModel"])
def test_hooks_on_a_recomputed_layer_run_once(name: str, reentrant: bool) -> None:
    """And see hidden states that have gradients, as in transformers."""
    found = []
    for kwargs in (None, {"use_reentrant": reentrant}):
        model = oracle.pair(name, **dropless(name))[1].train()
        if kwargs is not None:
            model.gradient_checkpointing_enable(kwargs)
        layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
        seen: list[torch.Tensor] = []

        def keep(_: object, __: object, out: Any, seen: list[torch.Tensor] = seen) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            hidden.retain_grad()
            seen.append(hidden)

        layers[0].register_forward_hook(keep)
        model(oracle.random_ids())[0].square().mean().backward()
        assert len(seen) == 1
        found.append([seen[0].grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one)


def dropless(name: str) -> dict[str, float]:
    if name == "DistilBertModel":
        return {"dropout": 0.0, "attention_dropout": 0.0}
    return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("name", ["BertModel", "BertLMHeadModel", "RemBertModel", "ElectraModel"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("called", [False, True])
def test_a_prefix_is_found_again_where_layers_are_recomputed(
    name: str, reentrant: bool, crossed: bool, called: bool
) -> None:
    """A cache grows when a layer is computed, and must not when that is done once more.

    transformers drops the cache under gradient checkpointing; here the numbers are those of the
    same model without checkpointing.
    """
    ids = oracle.random_ids()
    settings: dict[str, Any] = {"is_decoder": True, "add_cross_attention": crossed}
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    found = []
    for checkpointed in (False, True):
        model = oracle.pair(name, **settings)[1].train()
        if called:  # a part of somebody's own makes the layer one that is called as a module
            own_part = model.base_model.encoder.layer[1].attention.self
            own_part.__class__ = type("Own", (type(own_part),), {})
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        generator = torch.Generator().manual_seed(3)
        shape = (oracle.BATCH, oracle.HEADS, 3, oracle.HIDDEN // oracle.HEADS)
        prefix = [
            [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
            for _ in range(oracle.LAYERS)
        ]
        for tensor in (tensor for pair in prefix for tensor in pair):
            tensor.requires_grad_()
        own = DynamicCache()
        for layer, (keys, values) in enumerate(prefix):
            own.update(keys, values, layer)
        given: dict[str, Any] = {"past_key_values": own}
        if crossed:
            given["past_key_values"] = EncoderDecoderCache(own)
            wide = torch.randn(oracle.BATCH, 5, oracle.HIDDEN, generator=generator)
            given["encoder_hidden_states"] = wide.double()
        output = model(ids, **given)
        output[0].pow(2).mean().backward()
        assert own.get_seq_length() == 3 + oracle.LENGTH
        gradients = {n: p.grad for n, p in model.named_parameters()}
        gradients |= {f"{i}": t.grad for i, pair in enumerate(prefix) for t in pair}
        found.append({"output": output[0].detach(), **gradients})
    for key, value in found[0].items():
        if value is None:
            assert found[1][key] is None
        else:
            assert torch.allclose(found[1][key], value, rtol=1e-9, atol=1e-12), key
