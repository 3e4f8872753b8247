"""What people hold of transformers' in memory goes into fastbert as it is: weights, configurations.

Tensors of a state dict become the model's own where nothing must be converted, so that a model that
is there already is not there twice. A configuration of transformers is read as ours, and where it
cannot be, the error says which of the two classes of one name is meant.
"""

from __future__ import annotations

from typing import Any

import accelerating
import oracle
import pytest
import torch
import transformers

import fastbert

NAMES = ["BertModel", "BertForMaskedLM", "CamembertForSequenceClassification", "FlaubertModel"]


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_shared(name: str) -> None:
    theirs = accelerating.plain(name)
    ours = getattr(fastbert, name).from_pretrained(
        None, config=theirs.config, state_dict=theirs.state_dict()
    )
    addresses = {tensor.data_ptr() for tensor in theirs.state_dict().values()}
    for path, tensor in ours.named_parameters():
        assert tensor.data_ptr() in addresses, path
        assert tensor.requires_grad
    expected, found = accelerating.asked(theirs)[0], accelerating.asked(ours)[0]
    oracle.close(expected, found, accelerating.MASK, 2e-5, name)


def test_what_must_be_converted_is_not() -> None:
    theirs = accelerating.plain("BertModel")
    state: dict[str, Any] = dict(theirs.state_dict())
    name = "encoder.layer.0.output.dense.weight"
    state[name] = state[name].t().contiguous().t()
    half = fastbert.BertModel.from_pretrained(
        None, config=theirs.config, state_dict=state, dtype="bfloat16"
    )
    assert half.dtype is torch.bfloat16
    ours = fastbert.BertModel.from_pretrained(None, config=theirs.config, state_dict=state)
    assert ours.get_parameter(name).data_ptr() != state[name].data_ptr()
    with torch.inference_mode():
        frozen = {key: value.clone() for key, value in state.items()}
    ours = fastbert.BertModel.from_pretrained(None, config=theirs.config, state_dict=frozen)
    assert not any(tensor.is_inference() for tensor in ours.parameters())


def test_memory_of_two_names_is_taken_once() -> None:
    """Else a step on one parameter would move the other."""
    theirs = accelerating.plain("BertModel")
    state = dict(theirs.state_dict())
    first, second = (f"encoder.layer.{n}.output.dense.weight" for n in (0, 1))
    state[second] = state[first]
    ours = fastbert.BertModel.from_pretrained(None, config=theirs.config, state_dict=state)
    one, other = (ours.get_parameter(name) for name in (first, second))
    assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("family", ["Bert", "Camembert", "RemBert", "Flaubert"])
def test_a_configuration_of_transformers(family: str) -> None:
    theirs = getattr(transformers, f"{family}Config")(**oracle.FAMILIES[family])
    kind = getattr(fastbert, f"{family}Config")
    ours = kind.from_dict(theirs)
    for name in kind.default_config_fields():
        if hasattr(theirs, name):
            assert getattr(ours, name) == getattr(theirs, name), name
    model = fastbert.AutoModel.from_config(theirs)
    assert type(model.config) is kind
    with pytest.raises(TypeError, match=r"fastbert\.models.* of transformers\.models\..*from_dict"):
        getattr(fastbert, f"{family}Model")(theirs)
    with pytest.raises(ValueError, match="whose model type is 'gpt2'"):
        kind.from_dict(transformers.GPT2Config())
    with pytest.raises(TypeError, match="takes a dictionary or a configuration of transformers"):
        kind.from_dict("bert")
