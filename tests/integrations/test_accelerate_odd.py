"""Odd tensors, modes and weights around an accelerated encoder: the original's answers, or its own.

Whatever torch lets people put in the place of a plain tensor reaches the encoder sooner or later:
weights that are no parameters, inputs without values, modes that follow each operation, masks that
hold other numbers than 0 and 1.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerating import IDS, MASK, asked, pair, reasons, same, served
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.filterwarnings("ignore:A pass of the accelerated")
HEAD = "BertForSequenceClassification"


def as_plain_tensor(module: Any) -> None:
    weight = module.weight
    del module.weight
    module.weight = weight.detach() * 1.5


WEIGHTS = (
    (HEAD, "bert.encoder.layer.0.attention.self.query"),
    (HEAD, "bert.encoder.layer.1.output.LayerNorm"),
    (HEAD, "bert.embeddings.word_embeddings"),
    ("DistilBertModel", "transformer.layer.1.ffn.lin1"),
    ("FlaubertModel", "attentions.0.q_lin"),
    ("RemBertModel", "encoder.embedding_hidden_mapping_in"),
)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("name", "part"), WEIGHTS)
def test_a_weight_that_is_no_parameter(name: str, part: str, first: bool) -> None:
    """Hypernetworks and meta-learning write their weights as plain tensors."""
    theirs, ours = pair(name)
    if not first:
        served(ours)
    for _ in range(2):
        for model in (theirs, ours):
            module = model.get_submodule(part)
            if "weight" in module._parameters:
                as_plain_tensor(module)
            else:
                module.weight = module.weight * 0.5
        same(asked(theirs), served(ours))


PROJECTIONS = (
    ("RemBertModel", "encoder.embedding_hidden_mapping_in"),
    ("ElectraModel", "embeddings_project"),
    ("BertModel", "pooler.dense"),
    ("BertModel", "encoder.layer.0.output.dense"),
)


@pytest.mark.parametrize(("name", "part"), PROJECTIONS)
def test_a_projection_of_several_modules(name: str, part: str) -> None:
    """Its activation has no bias that could be read in place."""
    theirs, ours = pair(name)
    served(ours)
    for model in (theirs, ours):
        model.set_submodule(part, nn.Sequential(model.get_submodule(part), nn.Tanh()))
    same(asked(theirs), asked(ours))
    for model in (theirs, ours):
        with torch.no_grad():
            model.get_submodule(part)[0].weight.mul_(0.5)
    same(asked(theirs), asked(ours))


def test_shapes_without_values() -> None:
    """As tools find out what a model costs before it is run."""
    theirs, ours = pair(HEAD)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        expected, found = asked(theirs), asked(ours)
    assert found.logits.shape == expected.logits.shape and type(found) is type(expected)
    with mode:
        ids = mode.from_tensor(IDS)
        expected, found = (model(input_ids=ids).logits.shape for model in (theirs, ours))
    assert found == expected
    same(asked(theirs), served(ours))


class Seen(TorchDispatchMode):
    """Counts the operations of a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operations_of_the_original() -> None:
    counts = []
    for model in pair("BertModel"):
        with Seen() as seen:
            asked(model)
        counts.append(seen.count)
    assert counts[0] == counts[1] > 20


def test_tensors_of_a_class_of_their_own() -> None:
    class Tagged(Tensor):
        """Stays what it is through every operation of torch."""

    theirs, ours = pair("BertModel")
    ids, mask = IDS.as_subclass(Tagged), MASK.as_subclass(Tagged)
    expected = asked(theirs, input_ids=ids, attention_mask=mask)
    found = asked(ours, input_ids=ids, attention_mask=mask)
    assert type(found[0]) is type(expected[0]) is Tagged
    same(expected, found, 0.0)
    assert list(reasons(ours)) == ["input_ids is a Tagged"]


@pytest.mark.parametrize("name", ["FlaubertModel", "BertModel"])
@pytest.mark.parametrize("factor", [0.5, 2, -1])
def test_masks_of_other_numbers(name: str, factor: float) -> None:
    """FlauBERT multiplies hidden states by its mask; others ask for zeros alone."""
    theirs, ours = pair(name)
    mask = MASK * factor
    same(asked(theirs, attention_mask=mask), asked(ours, attention_mask=mask))
    assert bool(reasons(ours)) == (name == "FlaubertModel")
    same(asked(theirs, attention_mask=MASK.float()), served(ours, attention_mask=MASK.float()))
