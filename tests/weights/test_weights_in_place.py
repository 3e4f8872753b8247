"""Vectors in float32 are read where they lie: a write of any kind to one is followed at once.

Biases and the vectors of norms are no part of what is packed, so nothing compares their contents
and nothing is packed again when they change. Biases of joined projections are read one after the
other, and give the bits of a joined one.
"""

from __future__ import annotations

import pytest
import torch
from following import IDS, answer, check, made
from torch import Tensor, nn

from fastbert.kernels import native

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
# Queries, keys and values of whole panels of columns.
SIZES = {"hidden_size": 64, "num_attention_heads": 4}
VECTORS = [
    *(f"attention.self.{name}.bias" for name in ("query", "key", "value")),
    *(f"{part}.bias" for part in ("attention.output.dense", "intermediate.dense", "output.dense")),
    *(
        f"{part}.LayerNorm.{name}"
        for part in ("attention.output", "output")
        for name in ("weight", "bias")
    ),
]


def write_raw(vector: Tensor) -> None:
    vector.detach().numpy()[1::3] += 1.5


def test_raw_writes_are_followed_without_being_told() -> None:
    model = made(**SIZES)
    entry = None
    for name in (f"bert.encoder.layer.1.{vector}" for vector in VECTORS):
        if name.endswith("key.bias"):
            continue  # softmax takes it away again
        before = answer(model)
        entry = entry or model.bert.encoder_cache._entry
        write_raw(model.get_parameter(name))
        check(model, before)
        assert model.bert.encoder_cache._entry is entry, f"{name} was packed"


def test_embeddings_and_pooler_too() -> None:
    model = made(**SIZES)
    for name in ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias", "pooler.dense.bias"):
        before = answer(model)
        write_raw(model.bert.get_parameter(name))
        check(model, before)


def test_a_vector_put_elsewhere_is_read_there() -> None:
    model = made(**SIZES)
    for vector in ("attention.self.value.bias", "output.LayerNorm.bias"):
        before = answer(model)
        parameter = model.get_parameter(f"bert.encoder.layer.0.{vector}")
        parameter.data = parameter.data + 2.0
        check(model, before)


def strided(vector: Tensor) -> nn.Parameter:
    wide = torch.zeros(len(vector), 2)
    wide[:, 0] = vector
    return nn.Parameter(wide[:, 0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_three_biases_give_the_bits_of_a_joined_one(threads: int) -> None:
    former = torch.get_num_threads(), native.isa()
    try:
        torch.set_num_threads(threads)
        for isa in native.usable_isas():
            native.set_isa(isa)
            model = made(**SIZES)
            for block in model.bert.encoder.layer:
                for part in (block.attention.self.query, block.attention.self.value):
                    nn.init.normal_(part.bias)
            apart = answer(model)
            assert len(model.bert.encoder_cache._entry.view.copied) == 13
            for block in model.bert.encoder.layer:
                part = block.attention.self.query
                part.bias = strided(part.bias.detach())
            joined = answer(model)
            assert len(model.bert.encoder_cache._entry.view.copied) == 19
            assert torch.equal(apart, joined), isa
    finally:
        torch.set_num_threads(former[0])
        native.set_isa(former[1])


def test_vectors_of_sixteen_bits_are_packed() -> None:
    model = made(**SIZES).to(torch.bfloat16)
    with torch.no_grad():
        before = model(IDS).logits
        model.bert.encoder.layer[0].output.LayerNorm.bias.add_(1.0)
        after = model(IDS).logits
    assert not torch.equal(before, after)
    assert len(model.bert.encoder_cache._entry.view.copied) == 36
