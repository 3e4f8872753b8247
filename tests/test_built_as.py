"""A model computes as it was built: a configuration that is written to later changes no module.

Heads, activations, positions and norms are decided when a model is made, as in transformers. What
is right comes from transformers' model with the same writes, before and after a pass has run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastbert

sys.path.insert(0, str(Path(__file__).parent))

from family_pairs import FAMILIES, IDS, pair, same

WRITES: dict[str, Any] = {
    "hidden_act": "relu",
    "activation": "relu",
    "gelu_activation": False,
    "num_attention_heads": 4,
    "n_heads": 4,
    "hidden_size": 12,
    "emb_dim": 12,
    "layer_norm_eps": 0.5,
    "pad_token_id": 7,
    "pad_index": 7,
    "pre_norm": True,
    "max_position_embeddings": 4,
    "relative_attention_num_buckets": 8,
    "chunk_size_feed_forward": 1,
}
CASES = [(family, name) for family in FAMILIES for name in WRITES if family != "pre_norm"]


def in_config(family: str, name: str) -> bool:
    return name in vars(getattr(fastbert, f"{FAMILIES[family][0]}Config")())


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if in_config(*case)])
def test_a_later_configuration_changes_nothing(family: str, name: str) -> None:
    theirs, ours = pair(family)
    with torch.no_grad():
        same(theirs, ours)
        for model in (theirs, ours):
            setattr(model.config, name, WRITES[name])
        same(theirs, ours)
    same(theirs, ours)


@pytest.mark.parametrize(("name", "value"), [("causal", True), ("n_layers", 1), ("pad_index", 9)])
def test_what_flaubert_keeps_of_its_configuration_may_be_set(name: str, value: Any) -> None:
    theirs, ours = pair("flaubert")
    with torch.no_grad():
        same(theirs, ours)
        for model in (theirs, ours):
            assert getattr(model, name) is not None
            setattr(model, name, value)
        same(theirs, ours)


def test_the_order_of_norms_may_be_set() -> None:
    """transformers 5 cannot run with norms first, so what is right was built that way."""
    ours, first = pair("flaubert")[1], pair("flaubert", pre_norm=True)[1]
    with torch.no_grad():
        ours(IDS)
        ours.pre_norm = True
        assert torch.equal(ours(IDS)[0], first(IDS)[0])


@pytest.mark.parametrize("family", ["roberta", "camembert"])
def test_the_padding_of_embeddings_may_be_set(family: str) -> None:
    theirs, ours = pair(family)
    with torch.no_grad():
        same(theirs, ours)
        for model in (theirs, ours):
            model.embeddings.padding_idx = 9
        same(theirs, ours)


def longer(model: Any, rows: int) -> None:
    """Put a longer table of positions into a model, and leave its configuration."""
    for module in model.modules():
        old = getattr(module, "position_embeddings", None)
        if old is None:
            continue
        new = nn.Embedding(rows, old.embedding_dim)
        with torch.no_grad():
            new.weight.copy_(torch.linspace(-0.5, 0.5, new.weight.numel()).view_as(new.weight))
            new.weight[: old.num_embeddings] = old.weight
        module.position_embeddings = new
        if hasattr(module, "position_ids"):
            module.register_buffer("position_ids", torch.arange(rows)[None], persistent=False)
        if hasattr(module, "token_type_ids"):
            kinds = torch.zeros(1, rows, dtype=torch.long)
            module.register_buffer("token_type_ids", kinds, persistent=False)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta", "rembert", "electra", "distilbert", "mpnet"])
def test_the_table_of_positions_says_how_many_there_are(family: str, accelerated: bool) -> None:
    theirs, ours = pair(family, max_position_embeddings=12)
    if accelerated:
        ours = pair(family, max_position_embeddings=12)[0]
        fastbert.accelerate(ours)
    long: Tensor = IDS.repeat(1, 3)
    with torch.no_grad():
        same(theirs, ours)
        for model in (theirs, ours):
            longer(model, 40)
        expected, found = theirs(long)[0], ours(long)[0]
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
        if not accelerated:
            assert ours.longest() == 40 - 2 * (family in ("roberta", "mpnet"))


class Halving(nn.Dropout):
    """A dropout of one's own that is no dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("family", ["mpnet", "rembert", "bert"])
def test_dropouts_of_ones_own_are_called_where_transformers_calls(
    family: str, accelerated: bool
) -> None:
    """BERT reads the probability of the one for attention weights; MPNet and RemBERT call it."""
    theirs, ours = pair(family)
    if accelerated:
        ours = pair(family)[0]
        fastbert.accelerate(ours)
    for model in (theirs, ours):
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Dropout):
                    setattr(module, name, Halving(child.p))
    with torch.no_grad():
        same(theirs, ours)
    same(theirs, ours)


HEADS = ["bert", "roberta", "rembert", "electra", "distilbert", "mpnet"]


@pytest.mark.parametrize(
    ("family", "task"),
    [*((family, "ForMaskedLM") for family in HEADS), ("electra", "ForPreTraining")],
)
def test_a_later_activation_changes_no_head(family: str, task: str) -> None:
    theirs, ours = pair(family, task)
    with torch.no_grad():
        same(theirs, ours)
        for model in (theirs, ours):
            setattr(model.config, "activation" if family == "distilbert" else "hidden_act", "relu")
        same(theirs, ours)
    same(theirs, ours)
