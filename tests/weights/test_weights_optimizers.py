"""Prepared encoders follow what optimizers write, of which a fused one raises no version.

It can write only to a parameter that has a gradient. So a backward pass through the model, or a
gradient that is there, has the bytes compared, and what the model answers after a step has the bits
of a copy that has packed nothing yet.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from following import IDS, answer, check, made, part, train

import fastbert
from fastbert.kernels import native

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

KINDS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True}, "foreach": {"foreach": True},
    "single": {"fused": False, "foreach": False},
}  # fmt: skip
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad")


@pytest.mark.parametrize("passes", [1, 4], ids=["cold", "warm"])
@pytest.mark.parametrize("cleared", [True, False], ids=["zero_grad", "gradients stay"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_followed(
    name: str, kind: str, cleared: bool, passes: int, engine: str
) -> None:
    model = made()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2, **KINDS[kind])
    for mode in (True, False):  # train() and eval()
        for _ in range(2):
            for _ in range(passes):
                before = answer(model)
            train(model, mode)
            optimizer.step()
            if cleared:
                optimizer.zero_grad()
            check(model, before)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_pass_between_forward_and_backward_does_not_hide_a_step(mode: bool, engine: str) -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, fused=True)
    before = answer(model)
    for output in ("logits", "hidden_states", "attentions"):
        asked = {} if output == "logits" else {f"output_{output}": True}
        with torch.enable_grad():
            out = getattr(model.train(mode)(IDS, **asked), output)
        model.eval()
        assert torch.equal(answer(model), before)
        with torch.enable_grad():
            (out if output == "logits" else out[1]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        check(model, before)
        before = answer(model)


def test_gradients_set_by_hand_are_seen_while_they_are_set(engine: str) -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, fused=True)
    for weight in (part(model).weight, part(model).bias, model.classifier.weight):
        for _ in range(2):
            before = answer(model)
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            check(model, before)
        weight.requires_grad_(False)
        before = answer(model)
        optimizer.step()
        check(model, before)
        weight.grad = None


@pytest.mark.parametrize("name", ["classifier", "bert.pooler", "bert.embeddings.LayerNorm"])
def test_one_part_alone_is_trained(name: str, engine: str) -> None:
    model = made().requires_grad_(False)
    trained = model.get_submodule(name).requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2, fused=True)
    for mode in (True, False):
        for _ in range(2):
            before = answer(model)
            train(model, mode)
            optimizer.step()
            optimizer.zero_grad()
            check(model, before)


@pytest.mark.parametrize("name", ["", "classifier", "bert.pooler"])
def test_a_compiled_training_step_is_followed(name: str) -> None:
    model = made().requires_grad_(False)
    trained = model.get_submodule(name).requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2, fused=True)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        before = answer(model)
        train(compiled)
        optimizer.step()
        optimizer.zero_grad()
        check(model, before)


def test_a_compiled_encoder_is_followed() -> None:
    model = fastbert.BertModel(made().config, add_pooling_layer=False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        before = model(IDS).last_hidden_state
        with torch.enable_grad():
            compiled.train()(IDS).last_hidden_state.square().sum().backward()
        model.eval()
        optimizer.step()
        optimizer.zero_grad()
        after = model(IDS).last_hidden_state
        assert torch.equal(after, copy.deepcopy(model)(IDS).last_hidden_state)
        assert not torch.equal(after, before)
