"""Native code reads addresses: a tensor whose values are elsewhere, or gone, must not reach it.

Wrapper subclasses (quantised, sharded), wrapped and negated tensors go to the reference, with a
line that says so. Memory that was freed or cut is an error in a sentence. An operand that a caller
gave never counts as absent.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastbert
from fastbert.errors import Unavailable
from fastbert.kernels import kernel
from fastbert.ops.operands import NotPlain, obstacle
from fastbert.runtime import plan as plans

IDS = torch.arange(60).reshape(3, 20) % 50 + 5
PARTS = (
    "embeddings.word_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.0.intermediate.dense.bias",
    "encoder.layer.1.output.LayerNorm.bias",
    "pooler.dense.weight",
)


class Elsewhere(Tensor):
    """A tensor without memory of its own, as torchao's and DTensor are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, strides=inner.stride()
        )
        return made

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(value: Any) -> Any:
            return value.inner if isinstance(value, Elsewhere) else value

        tree = torch.utils._pytree
        result = func(*tree.tree_map(plain, args), **tree.tree_map(plain, kwargs or {}))
        return cls(result) if func is torch.ops.aten.detach.default else result


class Doubled(nn.Parameter):
    """A parameter that is multiplied as twice what lies in its memory."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            with torch._C.DisableTorchFunctionSubclass():
                x, weight, *rest = args
                return func(x, weight * 2, *rest)
        return super().__torch_function__(func, types, args, kwargs or {})


def negated(values: Tensor) -> Tensor:
    """Return a view with these values over memory that holds their negatives."""
    view = torch._neg_view(-values)
    assert view.is_neg()
    return view


@pytest.fixture
def model() -> fastbert.BertModel:
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        vocab_size=60,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.2,
    )
    made = fastbert.BertModel(config).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter.data, std=0.2)
    return made


def outputs(model: fastbert.BertModel, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(**(inputs or {"input_ids": IDS}))
    return torch.cat([found.last_hidden_state.flatten(), found.pooler_output.flatten()])


def replace(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, nn.Parameter(value, requires_grad=False))


@pytest.mark.parametrize("make", [Elsewhere, negated])
@pytest.mark.parametrize("name", PARTS)
def test_a_weight_that_is_not_plain_goes_to_the_reference_of_its_op(
    model: fastbert.BertModel, make: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = outputs(model)
    replace(model, name, make(model.get_parameter(name).data))
    plans._announce.cache_clear()
    with caplog.at_level(logging.WARNING, logger="fastbert"):
        found = outputs(model)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    assert "on the reference" in caplog.text
    assert ("Elsewhere" if make is Elsewhere else "negates") in caplog.text
    told = fastbert.explain(model).splitlines()
    assert any(line.startswith("on the reference") and name in line for line in told)
    model.strict = True
    with pytest.raises(Unavailable, match=f"{name} is a"):
        outputs(model)
    model.strict = False
    model.requires_grad_(True)
    differentiable = model(IDS).last_hidden_state
    torch.testing.assert_close(
        differentiable.detach().flatten(), found[: differentiable.numel()], atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("warm", [False, True])
def test_a_class_with_an_own_product_is_asked_for_it(model: fastbert.BertModel, warm: bool) -> None:
    dense = model.encoder.layer[0].intermediate.dense
    if warm:
        outputs(model)
    dense.weight.__class__ = Doubled
    found = outputs(model)
    dense.weight.__class__ = nn.Parameter
    dense.weight.data *= 2
    model.refresh()
    torch.testing.assert_close(found, outputs(model), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("bytes_left", [0, 128])
@pytest.mark.parametrize("name", PARTS)
def test_memory_that_is_gone_is_an_error(
    model: fastbert.BertModel, name: str, bytes_left: int, warm: bool
) -> None:
    if warm:
        outputs(model)
    model.get_parameter(name).untyped_storage().resize_(bytes_left)
    with pytest.raises(ValueError, match=f"holds {bytes_left} bytes of .* bring it back"):
        outputs(model)


@pytest.mark.parametrize(
    "make", [Elsewhere, lambda ids: ids.as_subclass(type("Mine", (Tensor,), {}))]
)
def test_inputs_that_are_not_plain(model: fastbert.BertModel, make: Any) -> None:
    expected = outputs(model)
    found = outputs(model, input_ids=make(IDS))
    torch.testing.assert_close(found.as_subclass(Tensor), expected, atol=2e-5, rtol=2e-5)
    embeds = model.embeddings.word_embeddings.weight.detach()[IDS]
    found = outputs(model, inputs_embeds=negated(embeds))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_an_operand_without_memory_does_not_count_as_absent() -> None:
    x, bias = torch.randn(3, 64), torch.randn(64)
    bias.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="bias is without its memory"):
        kernel("cpu", "bias_act")(x, bias, "gelu")
    with pytest.raises(ValueError, match="bias is without its memory"):
        kernel("cpu", "linear")(x, torch.randn(64, 64), bias)
    with pytest.raises(ValueError, match="residual is without its memory"):
        residual = torch.randn(3, 64)
        residual.untyped_storage().resize_(700)
        kernel("cpu", "linear")(x, torch.randn(64, 64), None, "none", residual)


def test_the_gate_knows_every_kind() -> None:
    whole = torch.randn(4, 6)
    for plain in (
        whole,
        whole.t(),
        whole[1:, 2:4],
        whole[:0],
        torch.tensor(1.0),
        nn.Parameter(whole),
    ):
        assert obstacle(plain) is None
    assert "Elsewhere" in str(obstacle(Elsewhere(whole)))
    assert "negates" in str(obstacle(negated(whole)))
    assert "zeros without memory" in str(obstacle(torch._efficientzerotensor(4)))
    assert "sparse" in str(obstacle(whole.to_sparse()))
    told = []
    torch.func.vmap(lambda row: told.append(obstacle(row)) or row)(whole)
    assert "torch.func" in str(told[0])
    with pytest.raises(NotPlain, match="only the reference computes with"):
        kernel("cpu", "bias_act")(negated(whole), None, "gelu")


def test_rows_of_nothing_take_no_time() -> None:
    assert kernel("cpu", "bias_act")(torch.empty(2**40, 0), None, "gelu").shape == (2**40, 0)
