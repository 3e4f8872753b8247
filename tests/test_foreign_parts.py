"""Parts of a model that someone hooked or replaced: adapters, new heads, hooks that look inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastbert
from fastbert.layers.linear import Linear

SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 40}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 1, 1, 1]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])

PROJECTIONS = (
    "encoder.layer.0.attention.self.query",
    "encoder.layer.1.attention.self.value",
    "encoder.layer.0.attention.output.dense",
    "encoder.layer.1.intermediate.dense",
    "encoder.layer.0.output.dense",
    "pooler.dense",
)


class Adapter(nn.Module):
    """A low-rank addition to a projection (Hu et al. 2021), as a user would write it."""

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down = nn.Parameter(torch.randn(3, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class PassingAdapter(Adapter):
    """The same as adapter libraries write it: whatever else is given goes to the projection."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.base(x, *args, **kwargs) + x @ self.down.T @ self.up.T


def bert(cls: Any = fastbert.BertModel, **options: Any) -> Any:
    torch.manual_seed(0)
    return randomised(cls(fastbert.BertConfig(**SIZES, **options)))


def randomised(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model.eval()


def replaced(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part)


def results(model: Any) -> Tensor:
    out = model(IDS, attention_mask=MASK)
    return torch.cat([value.flatten() for value in out.to_tuple()])


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", [Adapter, PassingAdapter])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_an_adapter_adds_to_the_product_alone(name: str, kind: type[Adapter], grad: bool) -> None:
    """Before activation and residual, as merging it into the weight does."""
    model = bert()
    merged = copy.deepcopy(model)
    before = results(model).detach()
    adapter = kind(model.get_submodule(name))
    replaced(model, name, adapter)
    with torch.no_grad():
        merged.get_submodule(name).weight += adapter.up @ adapter.down
    with torch.set_grad_enabled(grad):
        ours, expected = results(model), results(merged)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert (expected - before).abs().max() > 0.01
    if grad:
        ours.square().sum().backward()
        assert adapter.up.grad is not None and adapter.up.grad.abs().max() > 0


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_plain_linear_takes_the_place_of_ours(name: str) -> None:
    model = bert()
    same = copy.deepcopy(model)
    part = same.get_submodule(name)
    plain = nn.Linear(part.in_features, part.out_features)
    plain.load_state_dict(part.state_dict())
    replaced(same, name, plain)
    with torch.no_grad():
        torch.testing.assert_close(results(same), results(model), rtol=1e-5, atol=1e-5)


HEADS = {
    "BertForSequenceClassification": "classifier",
    "BertForTokenClassification": "classifier",
    "BertForQuestionAnswering": "qa_outputs",
    "BertForNextSentencePrediction": "cls.seq_relationship",
    "BertForMaskedLM": "cls.predictions.transform.dense",
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_replaced_by_torch_modules(head: str) -> None:
    """model.classifier = nn.Linear(...), as every tutorial does it."""
    model = bert(getattr(fastbert, head))
    same = copy.deepcopy(model)
    part = same.get_submodule(HEADS[head])
    plain = nn.Linear(part.in_features, part.out_features)
    plain.load_state_dict(part.state_dict())
    replaced(same, HEADS[head], nn.Sequential(nn.Identity(), plain))
    with torch.no_grad():
        torch.testing.assert_close(results(same), results(model), rtol=1e-5, atol=1e-5)
    results(same).square().mean().backward()
    assert plain.weight.grad is not None


def seen_by_a_hook(model: Any, name: str) -> tuple[Tensor, Tensor, nn.Module]:
    seen = []
    part = model.get_submodule(name)
    handle = part.register_forward_hook(lambda _m, given, out: seen.append((given[0], out)))
    with torch.no_grad():
        before = results(model)
    handle.remove()
    with torch.no_grad():
        torch.testing.assert_close(results(model), before, rtol=1e-4, atol=1e-5)
    ((given, out),) = seen
    return given, out, part


def test_hooks_see_the_product_before_activation_and_residual() -> None:
    flaubert = fastbert.FlaubertModel(
        fastbert.FlaubertConfig(n_words=60, emb_dim=24, n_layers=2, n_heads=2, pre_norm=True)
    )
    models = [(bert(), name) for name in PROJECTIONS]
    models += [(randomised(flaubert), name) for name in ("attentions.0.out_lin", "ffns.1.lin2")]
    models += [(bert(fastbert.BertForMaskedLM), "cls.predictions.transform.dense")]
    for model, name in models:
        given, out, part = seen_by_a_hook(model, name)
        expected = given @ part.weight.T + part.bias
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5, msg=name)


TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward", "subclass"])
def test_a_table_that_someone_hooked_is_called(table: str, how: str) -> None:
    model = bert()
    doubled = copy.deepcopy(model)
    part = model.embeddings.get_submodule(table)
    if how == "hook":
        part.register_forward_hook(lambda _m, _i, out: 2.0 * out)
    elif how == "pre-hook":
        part.register_forward_pre_hook(lambda _m, given: (given[0] * 0,))
    elif how == "forward":
        plain = part.forward
        part.forward = lambda ids: 2.0 * plain(ids)
    else:
        part.__class__ = type("Doubled", (nn.Embedding,), {"forward": _doubled})
    with torch.no_grad():
        weight = doubled.embeddings.get_submodule(table).weight
        weight.copy_(weight[:1].clone().expand_as(weight) if how == "pre-hook" else 2.0 * weight)
        expected = results(doubled)
        torch.testing.assert_close(results(model), expected, rtol=1e-4, atol=1e-5)


def _doubled(self: nn.Embedding, ids: Tensor) -> Tensor:
    return 2.0 * nn.functional.embedding(ids, self.weight)


def test_a_projection_is_called_alone_or_with_a_plan() -> None:
    part, model, x = Linear(4, 3), bert(), torch.randn(5, 2, 4)
    expected = nn.functional.linear(x, part.weight, part.bias)
    assert torch.equal(part(x), expected)
    torch.testing.assert_close(part(x[0], model.plan()), expected[0])
