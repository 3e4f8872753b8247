"""Models of transformers twice: one accelerated, one as it was; and their comparison, all rows."""

from __future__ import annotations

import copy
from typing import Any

import oracle
import torch
import transformers
from torch import Tensor, nn

import fastbert
from fastbert.integrations.accelerate import accelerated_in

BOUND = 2e-5


def plain(name: str, attention: str = "eager", **overrides: Any) -> Any:
    """A model of transformers, float32, in evaluation mode."""
    values = {**oracle.FAMILIES[oracle.family_of(name)], "num_labels": 2, **overrides}
    if oracle.is_causal(name):
        values.setdefault("is_decoder", True)
    config = getattr(transformers, f"{oracle.family_of(name)}Config")
    model = getattr(transformers, name)(config(attn_implementation=attention, **values)).eval()
    oracle.fill(model)
    model.tie_weights()
    return model


def pair(name: str, attention: str = "eager", **options: Any) -> tuple[Any, Any]:
    """(as it is, accelerated), with the same weights."""
    model = plain(name, attention)
    return copy.deepcopy(model), fastbert.accelerate(model, **options)


def as_float(case: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in case.items()
    }


def same(expected: Any, found: Any, bound: float = BOUND) -> None:
    """Compare outputs: their kind, fields, order, and every value, those of padding too."""
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert (expected.shape, expected.dtype) == (found.shape, found.dtype)
        assert expected.requires_grad == found.requires_grad
        scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(found, expected, atol=bound * scale, rtol=0, equal_nan=True)
        return
    assert type(found) is type(expected), (type(found), type(expected))
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        expected, found = tuple(expected.values()), tuple(found.values())
    if isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for one, other in zip(expected, found, strict=True):
            same(one, other, bound)


def reasons(model: Any) -> dict[str, int]:
    """Why passes of the model went to the original forward."""
    found: dict[str, int] = {}
    for _, _, server in accelerated_in(model):
        found |= server.reasons
    return found


def shells(model: Any) -> list[nn.Module]:
    """What computes the model's passes."""
    return [server._shell for _, _, server in accelerated_in(model)]


IDS = oracle.random_ids()
MASK = oracle.padded_mask()


def asked(model: Any, **options: Any) -> Any:
    """Ask a model about four texts, three of them padded, without gradients."""
    given: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK}
    with torch.no_grad():
        return model(**{**given, **options})


def served(model: Any, **options: Any) -> Any:
    """Ask an accelerated model, all of whose passes must be computed by kernels."""
    before = reasons(model)
    found = asked(model, **options)
    assert reasons(model) == before
    return found
