"""linear and int8_linear beyond the ops' own cases: epilogues, tiles, exact integers, bad input."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastbert.kernels import kernel
from fastbert.layers.linear import Int8Linear
from fastbert.ops import Traits, int8_linear as int8_reference, linear as linear_reference
from fastbert.ops.quantize_rows import quantize_rows as quantize_reference
from fastbert.runtime.plan import build_plan
from fastbert.testing import parity, poisoned_empty, strided
from fastbert.triton_kernels import configs, int8_linear as int8_module
from fastbert.triton_kernels.attention_grouped import CHUNK
from fastbert.triton_kernels.int8_linear import weight_sums

linear, int8_linear = kernel("triton", "linear"), kernel("triton", "int8_linear")

DTYPES = (torch.float32, torch.float16)
EPILOGUES = list(
    itertools.product(("none", "gelu", "gelu_new", "relu", "silu", "tanh"), (False, True))
)
# One row block and a bit, two column blocks and a bit, a depth that is no multiple of any tile.
ROWS, WIDTH, DEPTH = 70, 135, 77


def operands(dtype: torch.dtype, rows: int = ROWS) -> dict[str, torch.Tensor]:
    torch.manual_seed(rows)
    return {
        "x": strided(torch.randn(rows, DEPTH).to(dtype)),
        "weight": strided(torch.randn(WIDTH, DEPTH).to(dtype) / 8),
        "qweight": torch.randint(-127, 128, (WIDTH, DEPTH), dtype=torch.int8),
        "weight_scale": torch.rand(WIDTH) / 500,
        "bias": torch.randn(WIDTH).to(dtype),
        "residual": strided(torch.randn(rows, WIDTH).to(dtype)),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("activation", "residual"), EPILOGUES)
def check_epilogue(activation: str, residual: bool, dtype: torch.dtype) -> None:
    tensors = operands(dtype)
    common = {
        "x": tensors["x"],
        "bias": tensors["bias"],
        "activation": activation,
        "residual": tensors["residual"] if residual else None,
    }
    with poisoned_empty():
        verdict = parity(linear_reference.OP, linear, common | {"weight": tensors["weight"]}, dtype)
        assert verdict.ok, verdict.reason
        # Integers are multiplied one by one, which takes long: each epilogue with one dtype.
        if EPILOGUES.index((activation, residual)) // 2 % 2 != (dtype == torch.float16) ^ residual:
            return
        integer = {
            "qweight": tensors["qweight"],
            "weight_scale": tensors["weight_scale"],
        }
        verdict = parity(int8_reference.OP, int8_linear, common | integer, dtype)
        assert verdict.ok, verdict.reason


def check_both_tiles_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = operands(torch.float16)
    floats, integers = [], []
    for limit in (0, ROWS):
        monkeypatch.setattr(configs, "FEW_ROWS", limit)
        floats.append(linear(tensors["x"], tensors["weight"]))
        integers.append(int8_linear(tensors["x"], tensors["qweight"], tensors["weight_scale"]))
    assert torch.equal(*integers)
    # The interpreter's float product is a BLAS call, whose bits may depend on the tile's shape.
    assert torch.allclose(*floats, rtol=1e-3, atol=1e-3)


def check_integer_products_are_exact() -> None:
    # Rows spanning -128..127 quantise with scale 1, so the result is the integer sum itself.
    torch.manual_seed(1)
    x = torch.randint(-128, 128, (9, DEPTH)).float()
    x[:, 0], x[:, 1] = -128, 127
    weight = torch.randint(-128, 128, (WIDTH, DEPTH), dtype=torch.int8)
    exact = x.long() @ weight.long().t()
    for packed in (None, weight_sums(weight)):
        out = int8_linear(x, weight, torch.ones(WIDTH), packed=packed)
        assert torch.equal(out.long(), exact)
    assert torch.equal(weight_sums(weight), weight.sum(1, dtype=torch.int32))


def check_requantised_output() -> None:
    tensors = operands(torch.float32)
    arguments = (
        tensors["x"],
        tensors["qweight"],
        tensors["weight_scale"],
        tensors["bias"],
        "gelu",
    )
    plain = int8_linear(*arguments)
    expected, scale, zero_point = quantize_reference(plain)
    checked = int8_linear.check(int8_linear.target, *arguments)
    requantised = int8_linear.function(checked, requantize=(scale, zero_point))
    assert torch.equal(requantised, expected)
    # Far outside the range of the given scale the result saturates.
    saturated = int8_linear.function(checked, requantize=(scale * 1e-6, zero_point))
    grown = quantize_reference(plain)[2][:, None] + (plain / (scale * 1e-6)[:, None]).round()
    assert torch.equal(saturated, grown.clamp(0, 255).to(torch.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, "x has shape .3,., expected two dimensions"),
        ({"x": torch.zeros(3, 5)}, "weight has shape"),
        ({"qweight": torch.zeros(4, 8)}, "qweight is float32"),
        ({"weight_scale": torch.zeros(3)}, "weight_scale has shape"),
        ({"bias": torch.zeros(5)}, "bias has shape"),
        ({"residual": torch.zeros(3, 5)}, "residual has shape"),
        (
            {"residual": torch.zeros(3, 4, dtype=torch.float16)},
            "residual is float16",
        ),
        ({"packed": torch.zeros(64, dtype=torch.uint8)}, "packed is uint8"),
        ({"activation": "gelu_fast"}, "gelu_fast"),
        (
            {
                "x": torch.zeros(1, 65794),
                "qweight": torch.zeros(4, 65794, dtype=torch.int8),
            },
            "K is 65794, expected at most 65793",
        ),
    ],
)
def check_bad_input(change: dict[str, object], message: str) -> None:
    given = {
        "x": torch.zeros(3, 8),
        "qweight": torch.zeros(4, 8, dtype=torch.int8),
        "weight_scale": torch.ones(4),
    } | change
    with pytest.raises((TypeError, ValueError), match=message):
        int8_linear(**given)  # type: ignore[arg-type]


def check_table_rules() -> None:
    """What independence of the batch rests on."""
    for (arch, dtype, few), tile in configs.LINEAR.items():
        assert tile.k == configs.LINEAR[arch, dtype, not few].k
        assert tile.m % 64 == 0 or dtype in ("float32", "w8a32")
    for key, tile in configs.ATTENTION_CROWDED.items():
        assert tile.n == configs.ATTENTION[key].n
    assert all(CHUNK % tile.n == 0 for tile in configs.ATTENTION.values())


def check_a_layer_sums_its_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = int8_module.weight_sums

    def counted(weight: torch.Tensor) -> torch.Tensor:
        made.append(weight)
        return real(weight)

    for name in ("weight_sums", "int8_linear_prepack"):
        monkeypatch.setattr(int8_module, name, counted)
    layer = Int8Linear(DEPTH, WIDTH)
    layer.qweight.copy_(torch.randint(-127, 128, (WIDTH, DEPTH), dtype=torch.int8))
    plan = build_plan(Traits(), "cpu", torch.float32, "triton")
    x = torch.randn(ROWS, DEPTH)
    with torch.no_grad():
        first = layer(x, plan)
        assert torch.equal(layer(x, plan), first) and len(made) == 1
        layer.qweight.neg_()
        assert torch.equal(layer(x, plan) - layer.bias, -(first - layer.bias)) and len(made) == 2
