"""The reference on a GPU (training, autocast, GPUs without kernels) moves no scores: torch's fused
attention computes it wherever no weights and no biases are asked for.

What runs on a GPU is run on the CPU here, where torch's function is the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from fastbert.layers import attention
from fastbert.models.bert import BertModel
from fastbert.ops import REGISTRY, attention_varlen as attention_op
from fastbert.ops.attention_fused import fused_attention, fuses

OP = REGISTRY["attention_varlen"]
CASES = [case for case in OP.cases() if "bias" not in case.name]
BIASES = ("key_bias", "bias")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The CPU in a GPU's place; yields the dropout of every fused call."""
    calls: list[float] = []
    fused = F.scaled_dot_product_attention

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[4])
        return fused(*args, **kwargs)

    def on_gpu(q: Tensor, key_bias: Tensor | None, bias: Tensor | None) -> bool:
        return key_bias is None and bias is None

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    for module in (attention, attention_op):
        monkeypatch.setattr(module, "fuses", on_gpu)
    yield calls


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_and_gradients_are_the_references(case: Any) -> None:
    arguments = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in case.make(torch.float32).items()
    }
    if any(arguments.get(name) is not None for name in BIASES):
        pytest.skip("a bias is computed by the reference")
    arguments = {name: value for name, value in arguments.items() if name not in BIASES}
    results = []
    for function in (fused_attention, OP.reference):
        leaves = [arguments[name].detach().clone().requires_grad_() for name in "qkv"]
        out = function(**{**arguments, **dict(zip("qkv", leaves, strict=True))})
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        if out.requires_grad:  # nothing to attend to has none
            (out * weight).sum().backward()
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        results.append([out.detach(), *grads])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_only_a_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.zeros(3, 2, 8)
    assert not fuses(q, None, None)
    gpu = type("Pretended", (), {"is_cuda": True, "dtype": torch.bfloat16})()
    assert fuses(gpu, None, None)
    assert not fuses(gpu, q, None) and not fuses(gpu, None, q)
    gpu.dtype = torch.float64
    assert not fuses(gpu, None, None)


def model(**changes: Any) -> BertModel:
    torch.manual_seed(0)
    config = BertModel.config_class(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=300, **changes,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


IDS = torch.arange(2 * 256).view(2, 256) % 50
MASK = (torch.arange(256) < torch.tensor([[256], [100]])).long()


class Largest(TorchDispatchMode):
    """The largest floating tensor that a computation makes, in elements."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and made.is_floating_point():
                self.elements = max(self.elements, made.numel())
        return out


@pytest.mark.parametrize("training", [True, False])
def test_training_makes_no_scores(training: bool, as_on_a_gpu: list[float]) -> None:
    made = model().train(training)
    made.set_backend("reference")
    # On a CPU only the form without dropout makes no scores.
    kind = SDPBackend.MATH if training else SDPBackend.FLASH_ATTENTION
    with sdpa_kernel(kind), Largest() as mode:
        made(IDS, attention_mask=MASK).last_hidden_state.sum().backward()
    assert as_on_a_gpu == [0.1 if training else 0.0] * 2
    assert training or mode.elements < 2 * 2 * 256 * 256


def test_weights_that_are_asked_for_are_computed(as_on_a_gpu: list[float]) -> None:
    made = model(attention_probs_dropout_prob=0.0).eval()
    made.set_backend("reference")
    with torch.no_grad():
        out = made(IDS, attention_mask=MASK, output_attentions=True)
        plain = made(IDS, attention_mask=MASK)
    torch.testing.assert_close(out.last_hidden_state, plain.last_hidden_state)
    assert len(out.attentions) == 2 and out.attentions[0].shape == (2, 2, 256, 256)
