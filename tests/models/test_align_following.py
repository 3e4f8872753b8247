"""Folded batch norms follow every change of what they were folded from, or the modules compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from align_pair import VISION, inputs, perturbed
from torch import nn

import fastbert
from fastbert.errors import Unavailable
from fastbert.models.align import folding


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return perturbed(fastbert.AlignVisionModel(fastbert.AlignVisionConfig(**VISION))).eval()


def both(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a pass gives, and what its modules say."""
    pixels = inputs()["pixel_values"].to(model.dtype)
    with torch.no_grad():
        found = model(pixels).pooler_output
        with fastbert.use_backend("reference"):
            return found, model(pixels).pooler_output


def agree(model: Any) -> None:
    found, expected = both(model)
    assert (found - expected).norm() <= 2e-5 * expected.norm()


def _in_place(model: Any) -> None:
    with torch.no_grad():
        model.encoder.blocks[1].depthwise_conv.depthwise_norm.running_var.mul_(3.0)


def _loaded(model: Any) -> None:
    model.load_state_dict({name: t * 0.9 for name, t in model.state_dict().items()})


def _trained(model: Any, fused: bool = True) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    model.train()
    model(inputs()["pixel_values"]).pooler_output.square().sum().backward()
    optimizer.step()
    model.eval()


def _replaced_norm(model: Any) -> None:
    norm = model.encoder.blocks[2].projection.project_bn
    model.encoder.blocks[2].projection.project_bn = nn.GroupNorm(2, norm.num_features)


def _new_norm(model: Any) -> None:
    block = model.encoder.blocks[2].projection
    block.project_bn = copy.deepcopy(block.project_bn)
    with torch.no_grad():
        block.project_bn.weight.mul_(-1.0)


def _eps(model: Any) -> None:
    model.encoder.blocks[2].projection.project_bn.eps = 0.7


def _one_in_training(model: Any) -> None:
    for block in model.encoder.blocks:
        block.train()


def _hook(model: Any) -> None:
    model.encoder.blocks[3].squeeze_excite.register_forward_hook(lambda _m, _i, out: 0.5 * out)


def _activation(model: Any) -> None:
    model.encoder.blocks[3].expansion.expand_act = nn.ReLU()


def _fewer_blocks(model: Any) -> None:
    model.encoder.blocks = model.encoder.blocks[:-1]


def _other_forward(model: Any) -> None:
    model.encoder.blocks[0].forward = lambda x: model.encoder.blocks[0].__class__.forward(
        model.encoder.blocks[0], 2 * x
    )


def _without_affine(model: Any) -> None:
    model.embeddings.batchnorm.weight = None
    model.embeddings.batchnorm.bias = None


def _assigned(model: Any) -> None:
    other = {name: t + 0.01 for name, t in model.state_dict().items()}
    model.load_state_dict(other, assign=True)


def _pooler(model: Any) -> None:
    model.pooler = nn.AdaptiveMaxPool2d(1)


CHANGES: list[Callable[[Any], None]] = [
    _in_place,
    _loaded,
    _trained,
    _replaced_norm,
    _new_norm,
    _eps,
    _hook,
    _activation,
    _fewer_blocks,
    _other_forward,
    _without_affine,
    _assigned,
    _pooler,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_followed(model: Any, change: Callable[[Any], None]) -> None:
    before = both(model)[0]
    agree(model)
    change(model)
    agree(model)
    assert (both(model)[0] - before).norm() > 1e-4 * before.norm()


def test_parts_in_training_mode_compute_by_modules(model: Any) -> None:
    agree(model)
    _one_in_training(model)
    assert "training mode" in model.torch_parts()[1]


def test_raw_writes_are_told(model: Any) -> None:
    agree(model)
    model.encoder.blocks[0].projection.project_conv.weight.data.numpy()[:] *= 2.0
    model.refresh()
    agree(model)


def test_explain_and_strict_name_the_part(model: Any) -> None:
    model.set_backend(strict=True)
    with torch.no_grad():
        model(inputs()["pixel_values"])
    assert len(model.torch_parts()) == 1
    _hook(model)
    assert "encoder.blocks.3.squeeze_excite has hooks" in fastbert.explain(model)
    with torch.no_grad(), pytest.raises(Unavailable, match=r"blocks\.3\.squeeze_excite has hooks"):
        model(inputs()["pixel_values"])


def test_functional_call_and_transforms(model: Any) -> None:
    pixels = inputs()["pixel_values"]
    agree(model)
    with torch.no_grad():
        other = {name: 0.9 * t for name, t in model.named_parameters()}
        found = torch.func.functional_call(model, other, (pixels,)).pooler_output
        twin = copy.deepcopy(model)
        twin.load_state_dict(other, strict=False)
        assert torch.allclose(found, both(twin)[1], rtol=1e-4, atol=1e-5)
        many = torch.func.vmap(lambda x: model(x).pooler_output)(pixels[:, None])
        assert torch.allclose(many[:, 0], both(model)[1], rtol=1e-4, atol=1e-5)
    agree(model)


def test_autocast_computes_by_modules(model: Any) -> None:
    pixels = inputs()["pixel_values"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(pixels).pooler_output
        hidden = model.encoder(model.embeddings(pixels)).last_hidden_state
        expected = model.pooler(hidden).flatten(1)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_infinite_factors_are_not_folded(model: Any) -> None:
    with torch.no_grad():
        model.embeddings.batchnorm.running_var.fill_(-model.embeddings.batchnorm.eps)
    assert "not finite" in model.torch_parts()[1]
    found, expected = both(model)
    assert torch.equal(found.isnan(), expected.isnan())


def test_a_model_that_nobody_touched_is_not_looked_through(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(model)

    def looked(*_: object) -> None:
        raise AssertionError("looked")

    with monkeypatch.context() as patch:
        patch.setattr(folding, "_changed", looked)
        agree(model)
        model.encoder.blocks[3].eval()  # as it was
        agree(model)
        model.encoder.blocks[3].depthwise_conv.train()
        with pytest.raises(AssertionError, match="looked"):
            agree(model)
    agree(model.eval())
    twin = copy.copy(model)
    twin._modules = {**model._modules, "encoder": copy.deepcopy(model.encoder)}
    _in_place(twin)
    agree(twin)
    agree(model)
