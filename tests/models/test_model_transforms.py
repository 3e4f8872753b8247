"""Transforms of torch.func: their tensors have no address, and vmap's no value to look at.

What looks at values (checks of ids, the number of tokens) must leave such tensors alone, and a
function of autograd of our own must not be in the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vjp, vmap

IDS = oracle.random_ids()
NAMES = [
    "BertModel",
    "DistilBertForTokenClassification",
    "RobertaForSequenceClassification",
    "ElectraForMaskedLM",
    "RemBertModel",
    "MPNetModel",
]


def _loss(model: Any, parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
    loss: Tensor = (functional_call(model, parameters, (ids,))[0] * 0.1).pow(2).mean()
    return loss


def _gradient_for_each_text(model: Any) -> Any:
    plain = {name: p.detach() for name, p in model.named_parameters()}
    one = grad(lambda given, ids: _loss(model, given, ids[None]))
    return vmap(one, (None, 0))(plain, IDS)


def _mapped_texts(model: Any) -> Any:
    return {"found": vmap(lambda ids: model(ids[None])[0])(IDS)}


def _ensemble(model: Any) -> Any:
    state = stack_module_state([copy.deepcopy(model) for _ in range(2)])  # type: ignore[arg-type]
    return {"found": vmap(lambda *given: functional_call(model, given, (IDS,))[0])(*state)}


def _gradient(model: Any) -> Any:
    return grad(lambda given: _loss(model, given, IDS))(dict(model.named_parameters()))


def _pulled_back(model: Any) -> Any:
    loss, back = vjp(lambda given: _loss(model, given, IDS), dict(model.named_parameters()))
    return back(torch.ones_like(loss))[0]


def _pushed_forward(model: Any) -> Any:
    parameters = dict(model.named_parameters())
    ones = {name: torch.ones_like(p) for name, p in parameters.items()}
    return {"found": jvp(lambda given: _loss(model, given, IDS), (parameters,), (ones,))[1]}


def _jacobian(model: Any) -> Any:
    embedded = model.get_input_embeddings()(IDS).detach()
    few = jacrev(lambda x: model(inputs_embeds=x)[0].sum((0, 1)).flatten()[:3])
    return {"found": few(embedded)}


TRANSFORMS = [
    _gradient_for_each_text,
    _mapped_texts,
    _ensemble,
    _gradient,
    _pulled_back,
    _pushed_forward,
    _jacobian,
]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_transforms_give_the_numbers_of_transformers(
    name: str, transform: Callable[[Any], Any], dtype: torch.dtype
) -> None:
    theirs, ours = (model.to(dtype) for model in oracle.pair(name))
    ours.set_backend("auto")
    try:
        expected = transform(theirs)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        pytest.skip("transformers does not run it")
    found = transform(ours)
    # The gradient of a key's bias is nothing but rounding.
    least = 1e-3 * max(float(value.detach().norm()) for value in expected.values())
    for key, value in expected.items():
        error = (found[key] - value).detach().norm() / value.detach().norm().clamp(min=least)
        assert float(error) < (1e-8 if dtype is torch.float64 else 1e-3), key


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_under_vmap_ends_in_a_sentence(name: str) -> None:
    model = oracle.shared_pair(name)[1]
    with pytest.raises(NotImplementedError, match=r"maps over attention_mask"):
        vmap(lambda ids, mask: model(ids[None], attention_mask=mask[None])[0])(
            IDS, oracle.padded_mask()
        )
