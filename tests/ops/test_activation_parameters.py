"""An activation may have numbers of its own, which reach the kernels from wherever it was named."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import fastbert
from fastbert.engine.cpu_encoder import CpuEncoder
from fastbert.kernels import native
from fastbert.ops import Traits
from fastbert.ops.activations import Activation, activate, kernel_activation
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import build_plan

KERNELS = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
SLOPE = Activation("leaky_relu", (0.2,))


def test_a_name_and_its_text_mean_the_same() -> None:
    x = torch.linspace(-3, 3, 31)
    assert str(SLOPE) == "leaky_relu(0.2)" and Activation.parse("leaky_relu(0.2)") == SLOPE
    assert str(Activation("gelu")) == "gelu" == Activation.parse("gelu").name
    assert torch.equal(activate(x, SLOPE), F.leaky_relu(x, 0.2))
    assert torch.equal(activate(x, str(SLOPE)), F.leaky_relu(x, 0.2))
    assert torch.equal(activate(x, "leaky_relu"), F.leaky_relu(x))
    assert torch.equal(activate(x, Activation("quick_gelu")), x * torch.sigmoid(1.702 * x))


def test_kernels_get_a_code_and_two_numbers() -> None:
    assert kernel_activation("gelu") == (1, 0.0, 0.0)
    assert kernel_activation("leaky_relu") == (6, 0.01, 0.0)
    assert kernel_activation(SLOPE) == kernel_activation("leaky_relu(0.2)") == (6, 0.2, 0.0)
    assert kernel_activation("quick_gelu") == (7, 1.702, 0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Activation("leaky_relu", (0.1, 0.2)), "'leaky_relu' has 1 parameters, not 2"),
        (Activation("gelu", (0.1,)), "'gelu' has 0 parameters, not 1"),
        ("leaky_relu(steep)", "parameters that are no numbers"),
        (Activation("nothing"), "'nothing'"),
    ],
)
def test_wrong_parameters_get_a_sentence(wrong: str | Activation, message: str) -> None:
    for function in (lambda: activate(torch.zeros(2), wrong), lambda: kernel_activation(wrong)):
        with pytest.raises(ValueError, match=message):
            function()


@KERNELS
@pytest.mark.parametrize("grad", [False, True])
def test_the_plan_takes_one(grad: bool) -> None:
    """With gradients it goes through torch.library, which knows text only."""
    plan = build_plan(Traits(activation=SLOPE), "cpu", torch.float32, strict=True)
    x, weight = torch.randn(5, 7), torch.randn(3, 7)
    with torch.set_grad_enabled(grad):
        out = plan.linear(x, weight, activation=SLOPE)
        text = plan.linear(x, weight, None, str(SLOPE))
    expected = F.leaky_relu(F.linear(x, weight), 0.2)
    torch.testing.assert_close(out, expected)
    assert torch.equal(out, text)


@KERNELS
@pytest.mark.parametrize("name", ["leaky_relu", "quick_gelu"])
def test_an_encoder_has_the_parameters_of_its_blocks(name: str) -> None:
    config = fastbert.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, hidden_act=name, initializer_range=0.3,
    )  # fmt: skip
    model = fastbert.BertModel(config).eval().requires_grad_(False)
    rows, batch = torch.randn(9, 16), PackedBatch.from_lengths([4, 5])

    def run(activation: str | Activation) -> torch.Tensor:
        blocks = [dataclasses.replace(b, activation=activation) for b in model.blocks()]
        return CpuEncoder(blocks)(rows, batch)

    ids = torch.randint(0, 40, (2, 6))
    with torch.no_grad():
        ours = model(ids)[0]
        with fastbert.use_backend("reference"):
            torch.testing.assert_close(ours, model(ids)[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(run(name), run(Activation(name)))
    assert not torch.equal(run(name), run(Activation(name, (0.5,))))
