"""Several precisions in one pass: under autocast, and where parts of a model were converted.

The mechanism is that of torch: under autocast, linear layers compute in the lower precision and a
norm keeps that of its input; without it, norms in float32 and tables of several precisions are
computed with, and a linear layer whose precision is not its input's is refused. Kernels do none of
that by themselves, so what differs goes to the reference, and packing rounds nothing.

The weights of attention are left out under autocast: transformers returns them as float32 where a
mask was given and in the lower precision where none was, since its mask is a float32 addend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor, nn

import fastbert
from fastbert.errors import Unavailable

IDS = oracle.random_ids()
BF16 = torch.bfloat16


def _tensors(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, dict):
        for key, value in output.items():
            yield from _tensors(value, f"{name}.{key}")
    elif isinstance(output, tuple):
        for index, value in enumerate(output):
            yield from _tensors(value, f"{name}[{index}]")


def _float32(name: str, **settings: Any) -> tuple[Any, Any]:
    theirs, ours = (model.float() for model in oracle.pair(name, **settings))
    ours.set_backend("auto")
    return theirs, ours


@pytest.mark.parametrize("name", oracle.CLASSES)
def test_autocast_gives_the_precisions_of_transformers(name: str) -> None:
    pair = _float32(name)
    cases = oracle.inputs_of(name)
    given = [cases["mask"], {**cases["mask"], "output_hidden_states": True}]
    given += [cases["labels"]] if "labels" in cases else []
    for training in (False, True):
        for gradients in (False, True):
            for keywords in given:
                found = []
                for model in pair:
                    model.train(training)
                    with torch.set_grad_enabled(gradients), torch.autocast("cpu", BF16):
                        found.append(model(**keywords))
                theirs, ours = ({k: v.dtype for k, v in _tensors(output)} for output in found)
                assert ours == theirs


def _norms(model: nn.Module) -> list[nn.LayerNorm]:
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


def _layers(model: Any) -> Any:
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return next(stack for stack in stacks if len(stack) == oracle.LAYERS)


def _norms_in_float32(model: Any) -> None:
    model.to(BF16)
    for norm in _norms(model):
        norm.float()


def _last_norm_in_float32(model: Any) -> None:
    _norms_in_float32(model)
    for norm in _norms(model)[:-1]:
        norm.to(BF16)


def _words_in_bfloat16(model: Any) -> None:
    model.get_input_embeddings().to(BF16)


COMPUTED = [_norms_in_float32, _last_norm_in_float32, _words_in_bfloat16]
# No head of these is tied to the words.
FAMILIES = ["BertForSequenceClassification", "MPNetForSequenceClassification", "RemBertForMaskedLM"]


@pytest.mark.parametrize("change", COMPUTED)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("attentions", [False, True])
def test_what_torch_mixes_is_computed_like_torch(
    name: str, change: Callable[[Any], None], gradients: bool, attentions: bool
) -> None:
    found = []
    for model in _float32(name):
        change(model)
        with torch.set_grad_enabled(gradients):
            output = model(IDS, attention_mask=oracle.padded_mask(), output_attentions=attentions)
        found.append(output[0].detach())
    theirs, ours = found
    assert ours.dtype is theirs.dtype
    keep = oracle.padded_mask()[..., None] if theirs.dim() == 3 else torch.ones(())
    error = ((ours.double() - theirs.double()) * keep).norm() / (theirs.double() * keep).norm()
    assert float(error) < (0.02 if theirs.dtype is BF16 else 1e-5)


def _head_in_float32(model: Any) -> None:
    model.base_model.to(BF16)


def _one_layer_in_float32(model: Any) -> None:
    model.to(BF16)
    _layers(model)[1].float()


def _one_layer_in_bfloat16(model: Any) -> None:
    _layers(model)[1].to(BF16)


def _one_bias_in_float32(model: Any) -> None:
    model.to(BF16)
    linear = next(part for part in _layers(model)[0].modules() if isinstance(part, nn.Linear))
    linear.bias = nn.Parameter(linear.bias.detach().float())


def _norms_in_bfloat16(model: Any) -> None:
    for norm in _norms(model):
        norm.to(BF16)


REFUSED = [
    _head_in_float32,
    _one_layer_in_float32,
    _one_layer_in_bfloat16,
    _one_bias_in_float32,
    _norms_in_bfloat16,
]


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "DistilBertForTokenClassification"]
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_torch_does_not_mix_ends_in_a_sentence(
    name: str, change: Callable[[Any], None], backend: str
) -> None:
    """Kernels must not round the weights instead, and torch's own words name no way out."""
    theirs, ours = _float32(name)
    ours.set_backend(backend)
    for model in (theirs, ours):
        change(model)
    for training in (False, True):
        ours.train(training)
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                with pytest.raises(RuntimeError):
                    theirs(IDS)
                with pytest.raises(TypeError, match=r"share one precision.*torch\.autocast"):
                    ours(IDS)
    if change not in (_norms_in_bfloat16, _one_layer_in_bfloat16):  # norms: refused there too
        with torch.no_grad(), torch.autocast("cpu", BF16):
            expected, found = (model.eval()(IDS)[0] for model in (theirs, ours))
        assert found.dtype is expected.dtype
        assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_mixture_is_named_and_refused_where_kernels_are_asked_for() -> None:
    model = _float32("BertModel")[1]
    _words_in_bfloat16(model)
    assert "so torch computes with it" in str(fastbert.explain(model))
    model.strict = True
    with torch.no_grad(), pytest.raises(Unavailable, match="not bfloat16"):
        model(IDS)
