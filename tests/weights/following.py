"""Small models that have run, on the CPU's encoder and a GPU's, and what they must answer next."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastbert
from fastbert.engine import encoder_cache
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.runtime import versions
from fastbert.runtime.plan import Plan

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
LABELS = torch.tensor([0, 1])
ENGINES = ("cpu", "gpu")


class Recorder:
    """Replays a pass by running it again."""

    def busy(self) -> bool:
        return False

    def turn(self, buffers: tuple[Tensor, ...]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record(self, run: Callable[[], None]) -> Any:
        class Replay:
            def replay(self) -> None:
                run()

        return Replay()

    def settle(self) -> None:
        pass


def with_short_offsets(plan: Plan) -> Plan:
    """The plan with an attention that takes offsets short of its rows, as a GPU's does."""

    def attention(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, *rest: Any) -> Tensor:
        total, longest = int(cu[-1]), int(cu.diff().max())
        out = torch.zeros_like(q)
        parts = (q[:total], k[:total], v[:total])
        out[:total] = plan.attention_varlen(*parts, cu, cu, longest, longest, rest[3], False)
        return out

    choices = tuple(
        dataclasses.replace(choice, function=attention)
        if choice.op == "attention_varlen"
        else choice
        for choice in plan.choices
    )
    return dataclasses.replace(plan, choices=choices)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of a GPU, which reads most weights in place, over the CPU's kernels."""

    def encoder(blocks: Any, plan: Plan) -> GpuEncoder:
        return GpuEncoder(blocks, with_short_offsets(plan), Recorder())

    monkeypatch.setattr(encoder_cache, "on_cpu", lambda device: False)
    monkeypatch.setattr(Plan, "prepack", lambda *_: None)
    monkeypatch.setattr(encoder_cache, "GpuEncoder", encoder)


def made(**changes: Any) -> Any:
    sizes = {
        "vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 100, "num_labels": 7,
    }  # fmt: skip
    config = fastbert.BertConfig(**(sizes | changes))
    model = fastbert.BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.normal_(0.1, 0.2)
    return model


def answer(model: Any, ids: Tensor = IDS) -> Tensor:
    hidden = model.bert(ids).last_hidden_state
    return torch.cat([hidden.flatten(), model(ids).logits.flatten()])


def check(model: Any, before: Tensor | None) -> None:
    """The model answers as one that has packed nothing, and otherwise than before."""
    after = answer(model)
    fresh = copy.deepcopy(model)
    assert torch.equal(after, answer(fresh))
    assert torch.equal(answer(model), after)
    if before is not None:
        assert after.shape != before.shape or not torch.equal(after, before.to(after.dtype))


def train(model: Any, mode: bool = True) -> None:
    """Give all weights that want them gradients, with the model in train() or eval()."""
    with torch.enable_grad():
        model.train(mode)(IDS, labels=LABELS).loss.backward()
    model.eval()


def part(model: Any) -> Any:
    return model.bert.encoder.layer[1].attention.self.query


class Counted:
    """Counts packings and the tensors whose bytes were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packed = self.read = 0
        encoder, bytes_of = encoder_cache.CpuEncoder, versions._bytes_of

        def pack(*args: Any) -> Any:
            self.packed += 1
            return encoder(*args)

        def read(tensor: Tensor) -> Any:
            self.read += 1
            return bytes_of(tensor)

        monkeypatch.setattr(encoder_cache, "CpuEncoder", pack)
        monkeypatch.setattr(versions, "_bytes_of", read)

    def of(self, run: Callable[[], object]) -> tuple[int, int]:
        self.packed = self.read = 0
        run()
        return self.packed, self.read
