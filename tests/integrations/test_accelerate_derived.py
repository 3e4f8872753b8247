"""Classes that people derive from transformers' own: served as long as they compute the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import oracle
import pytest
import torch
import transformers
from accelerating import asked, plain, reasons, same, served
from torch import nn

import fastbert
from fastbert.integrations.accelerate import accelerated_in


class Helping(transformers.BertModel):
    def sentence(self, **given: Any) -> torch.Tensor:
        found: torch.Tensor = self(**given).pooler_output
        return found


class Further(Helping):
    def __init__(self, config: Any, **options: Any) -> None:
        super().__init__(config, **options)
        self.scores = nn.Linear(config.hidden_size, 2)


class OwnConfig(transformers.BertConfig):
    model_type = "bert-of-ones-own"


class Configured(transformers.BertModel):
    config_class = OwnConfig


class Head(transformers.BertPreTrainedModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert, self.out = Further(config), nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, **given: Any) -> Any:
        return self.out(self.bert(**given).pooler_output)


class Doubling(transformers.BertModel):
    def forward(self, *args: Any, **given: Any) -> Any:
        found = super().forward(*args, **given)
        found.last_hidden_state = found.last_hidden_state * 2
        return found


class Halved(transformers.models.bert.modeling_bert.BertEmbeddings):
    def forward(self, *args: Any, **given: Any) -> Any:
        return super().forward(*args, **given) * 0.5


class Embedding(transformers.BertModel):
    def __init__(self, config: Any, **options: Any) -> None:
        super().__init__(config, **options)
        self.embeddings = Halved(config)


def made(kind: Any) -> Any:
    values = plain("BertModel").config.to_dict()
    values.pop("model_type")
    model = kind(kind.config_class(**values)).eval()
    oracle.fill(model)
    return model


@pytest.mark.parametrize("kind", [Helping, Further, Configured, Head])
def test_a_class_that_computes_the_same_is_served(kind: Any) -> None:
    theirs = made(kind)
    ours = fastbert.accelerate(copy.deepcopy(theirs))
    assert accelerated_in(ours) and isinstance(ours, kind)
    same(asked(theirs), served(ours))
    same(asked(theirs), served(pickle.loads(pickle.dumps(ours))))
    for model in (theirs, ours):
        with torch.no_grad():
            next(
                part for path, part in model.named_modules() if path.endswith("query")
            ).weight.mul_(2)
    same(asked(theirs), served(ours))
    assert type(fastbert.restore(ours)) is kind and not accelerated_in(ours)


def test_parts_of_ones_own_in_it_are_seen() -> None:
    theirs = made(Embedding)
    with pytest.warns(UserWarning, match="embeddings is a Halved, not a BertEmbeddings"):
        ours = fastbert.accelerate(copy.deepcopy(theirs))
    same(asked(theirs), asked(ours), 0.0)
    assert reasons(ours)


def test_a_forward_of_its_own_is_refused_by_name() -> None:
    model = made(Doubling)
    with pytest.raises(TypeError, match="Doubling is a BertModel with forward of its own"):
        fastbert.accelerate(model)
    assert type(model) is Doubling
    # As one encoder of several, it stays as it is.
    both = nn.ModuleList([model, plain("BertModel")])
    fastbert.accelerate(both)
    assert type(both[0]) is Doubling and len(accelerated_in(both)) == 1


def test_further_modules_of_an_encoder_change_nothing() -> None:
    theirs = plain("BertModel")
    ours = fastbert.accelerate(copy.deepcopy(theirs))
    ours.add_module("scores", nn.Linear(2, 2))
    same(asked(theirs), served(ours))
    ours.encoder.add_module("scores", nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="encoder holds other modules"):
        same(asked(theirs), asked(ours))
