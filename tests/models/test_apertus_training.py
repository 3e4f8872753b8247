"""Apertus in training: recomputed layers, dropout, losses, and the head over tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from apertus_pair import PADDED, close, exact_norms, ids, pair

import fastbert


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    yield from exact_norms()


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_layers(every: int) -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = ids(2, 9)
    ours.train()
    plain = ours(batch, labels=batch)
    assert plain.past_key_values is not None
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    ours.gradient_checkpointing_enable(every_n_layers=every)
    out = ours(batch, labels=batch)
    assert out.past_key_values is None and torch.equal(out.loss, plain.loss)
    out.loss.backward()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        ours(batch, past_key_values=fastbert.DynamicCache())


def test_attention_dropout_acts_in_training_only() -> None:
    ours, _ = pair(attention_dropout=0.5)
    batch = ids(1, 9)
    assert torch.equal(ours(batch).logits, ours(batch).logits)
    ours.train()
    torch.manual_seed(0)
    one = ours(batch).logits
    assert not torch.equal(one, ours(batch).logits)


def test_losses() -> None:
    ours, theirs = pair()
    batch = ids(2, 7)
    given = {"labels": batch, "num_items_in_batch": 5}
    close(ours(batch, **given).loss, theirs(batch, **given).loss, 1e-6)
    shifted = torch.nn.functional.pad(batch, (0, 1), value=-100)[:, 1:].contiguous()
    close(ours(batch, shift_labels=shifted).loss, ours(batch, labels=batch).loss)
    last = {"labels": batch[:, -3:], "logits_to_keep": 3}
    close(ours(batch, **last).loss, theirs(batch, **last).loss, 1e-6)
    with pytest.raises(ValueError, match="labels of those n columns"):
        ours(batch, labels=batch, logits_to_keep=3)
    whole = ours(batch).logits
    columns, several = torch.tensor([0, 4]), torch.tensor([[1, 2], [5, 0]])
    close(ours(batch, logits_to_keep=columns).logits, whole[:, columns])
    close(ours(batch, logits_to_keep=several).logits, whole[torch.arange(2)[:, None], several])
    close(ours(batch, logits_to_keep=batch > 20).logits, whole[batch > 20])


def test_token_classification() -> None:
    ours, theirs = pair("ApertusForTokenClassification", num_labels=3)
    batch, mask = ids(2, 7), torch.tensor(PADDED["right"])
    labels = torch.where(mask != 0, batch % 3, -100)
    one = ours(batch, attention_mask=mask, labels=labels)
    other = theirs(batch, attention_mask=mask, labels=labels)
    assert list(one) == list(other) and ours.score.bias is not None
    close(one.logits[mask != 0], other.logits[mask != 0])
    close(one.loss, other.loss, 1e-6)
    assert ours.dropout.p == theirs.dropout.p == 0.1
    for options in ({"hidden_dropout": 0.0}, {"classifier_dropout": 0.3, "hidden_dropout": 0.0}):
        one, other = pair("ApertusForTokenClassification", **options)
        assert one.dropout.p == other.dropout.p
    one, other = pair("ApertusForTokenClassification", token_classification_bias=False)
    assert one.score.bias is None and other.score.bias is None
