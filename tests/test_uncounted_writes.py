"""Weights written to in ways that torch does not count as a new version: packed ones follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastbert
from fastbert.kernels import native
from fastbert.runtime.plan import use_backend
from fastbert.runtime.versions import readable_bytes, sample

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


def made() -> Any:
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=100,
        num_labels=300,
    )
    model = fastbert.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.2)
    return model


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def through_data(weight: nn.Parameter) -> None:
    weight.data.mul_(-1.5)


def by_numpy(weight: nn.Parameter) -> None:
    weight.detach().numpy()[...] *= -1.5


def averaged(weight: nn.Parameter) -> None:
    weight.data.lerp_(torch.ones_like(weight), 0.01)


WRITES: list[Callable[[nn.Parameter], None]] = [through_data, by_numpy, averaged]
WEIGHTS = (
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.1.output.dense.weight",
    "bert.encoder.layer.1.output.dense.bias",
    "bert.encoder.layer.0.output.LayerNorm.weight",
    "bert.embeddings.LayerNorm.bias",
    "bert.pooler.dense.weight",
    "classifier.weight",
)


def check_follows(model: Any, before: Tensor) -> None:
    after = model(IDS).logits
    with use_backend("reference"):
        expected = model(IDS).logits
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("name", WEIGHTS)
def test_packed_weights_follow_what_torch_does_not_count(
    name: str, write: Callable[[nn.Parameter], None]
) -> None:
    model = made()
    before = model(IDS).logits
    weight = model.get_parameter(name)
    version = weight._version
    write(weight)
    assert weight._version == version, "torch counts this now; it needs no test of its own"
    check_follows(model, before)


def test_a_model_made_in_inference_mode_is_followed() -> None:
    with torch.inference_mode():
        model = made()
        before = model(IDS).logits
        for weight in model.parameters():
            weight.mul_(1.25)
        check_follows(model, before)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_fused_optimizer_is_followed(optimizer: str) -> None:
    """transformers' Trainer takes fused AdamW unless told otherwise."""
    model = made()
    before = model(IDS).logits
    steps = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-2, fused=True)
    for _ in range(2):
        with torch.enable_grad():
            model.train()(IDS, labels=torch.tensor([0, 1])).loss.backward()
        version = model.bert.pooler.dense.weight._version
        steps.step()
        # On a GPU the version is all there is.
        assert model.bert.pooler.dense.weight._version > version
        check_follows(model.eval(), before)
        before = model(IDS).logits


def test_what_is_small_is_sampled_whole() -> None:
    for size in (1, 7, 8, 63, 64, 255, 256, 257, 1000):
        memory = torch.zeros(size, dtype=torch.uint8)
        before = sample(memory)
        assert sample(torch.zeros(size, dtype=torch.uint8)) == before
        for place in range(min(size, 256)) if size <= 256 else (0, 63, size - 64, size - 1):
            memory[place] = 1
            assert sample(memory) != before, f"byte {place} of {size}"
            memory[place] = 0
        assert sample(memory) == before


def test_the_sample_reads_no_further_than_the_last_element() -> None:
    wide = torch.zeros(6, 10)
    part = wide[1:3, 2:5]
    assert readable_bytes(part) == (10 + 2 + 1) * 4
    assert readable_bytes(wide.t()) == 60 * 4
    assert readable_bytes(torch.zeros(0, 4)) == sample(torch.zeros(0, 4)) == 0
    assert readable_bytes(torch.zeros(3, device="meta")) == 0
    before = sample(part)
    wide[2, 5] = 1.0
    assert sample(part) == before
    wide[2, 4] = 1.0
    assert sample(part) != before
