"""The row ops beyond their own cases: ids without a row, NaN, layouts, bad input."""

from __future__ import annotations

import pytest
import torch

from fastbert.kernels import kernel
from fastbert.ops.quantize_rows import quantize_rows as reference
from fastbert.triton_kernels.configs import ROW_LIMIT, column_block, row_block

add_layer_norm, act_layer_norm = (
    kernel("triton", "add_layer_norm"),
    kernel("triton", "act_layer_norm"),
)
bias_act, embed_layer_norm = kernel("triton", "bias_act"), kernel("triton", "embed_layer_norm")
quantize_rows = kernel("triton", "quantize_rows")
VECTOR = torch.ones(8)


def check_ids_without_a_row_give_nan_rows() -> None:
    ids = torch.tensor([0, 7, -1, 8, 2**40, 3])
    out = embed_layer_norm(ids, torch.randn(8, 8), VECTOR, VECTOR, 1e-5)
    assert out.isnan().all(1).tolist() == [False, False, True, True, True, False]
    assert not out[[0, 1, 5]].isnan().any()


@pytest.mark.parametrize("signed", [False, True])
def check_quantised_specials(signed: bool) -> None:
    x = torch.randn(4, 9)
    x[0, 1], x[1, 2], x[2] = float("nan"), float("inf"), 0.0
    operands = quantize_rows.check(quantize_rows.target, x)
    q, scale, zero_point = quantize_rows.function(operands, signed=signed)
    expected, expected_scale, expected_zero = reference(x)
    shift = 128 if signed else 0
    assert torch.equal(q.int(), expected.int() - shift)
    assert torch.equal(zero_point, expected_zero - shift)
    assert torch.equal(scale.nan_to_num(-1.0), expected_scale.nan_to_num(-1.0))
    assert scale[0].isnan()


def check_nan_and_infinity_propagate() -> None:
    x = torch.randn(3, 8)
    x[0, 0], x[1, 0] = float("nan"), float("inf")
    for out in (
        add_layer_norm(x, VECTOR, VECTOR, 1e-5)[0],
        act_layer_norm(x, None, VECTOR, VECTOR, 1e-5, "gelu"),
    ):
        assert out[:2].isnan().all() and not out[2].isnan().any()
    for name in ("none", "gelu", "gelu_new", "relu", "silu", "tanh"):
        out = bias_act(x, None, name)
        assert out[0, 0].isnan() and not out[0, 1:].isnan().any()
        assert out[1, 0] == (1.0 if name == "tanh" else float("inf"))


def check_far_ends_of_activations() -> None:
    x = torch.tensor([[-1e30, -200.0, -90.0, -12.0, 12.0, 90.0, 200.0, 1e30]])
    for name in ("gelu", "gelu_new", "silu"):
        out = bias_act(x, None, name)
        assert torch.equal(out[0, 4:], x[0, 4:]) or name == "silu"
        assert (out[0, :3].abs() < 1e-30).all() and torch.allclose(out[0, 4:], x[0, 4:])
    assert torch.equal(bias_act(x, None, "tanh"), torch.sign(x))


def check_tanh_keeps_small_values() -> None:
    x = torch.logspace(-30, 1.2, 4000)[None]
    exact = x.double().tanh()
    assert ((bias_act(x, None, "tanh").double() - exact) / exact).abs().max() < 1.5e-7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: add_layer_norm(torch.zeros(8), VECTOR, VECTOR, 1e-5),
            "x has shape .8,., expected two dimensions",
        ),
        (
            lambda: add_layer_norm(torch.zeros(2, 9), VECTOR, VECTOR, 1e-5),
            "weight has shape",
        ),
        (
            lambda: add_layer_norm(
                torch.zeros(2, 8), VECTOR, VECTOR, 1e-5, residual=torch.zeros(3, 8)
            ),
            "residual has shape",
        ),
        (
            lambda: bias_act(torch.zeros(2, 8), VECTOR.half(), "gelu"),
            "bias is float16",
        ),
        (lambda: bias_act(torch.zeros(2, 8), VECTOR, "mish"), "mish"),
        (
            lambda: bias_act(torch.zeros(2, 8).double(), None, "gelu"),
            "x is float64",
        ),
        (
            lambda: quantize_rows(torch.zeros(1, ROW_LIMIT + 1)),
            f"holds 1 to {ROW_LIMIT}",
        ),
        (
            lambda: embed_layer_norm(None, None, VECTOR, VECTOR, 1e-5),
            "either inputs_embeds",
        ),
        (
            lambda: embed_layer_norm(
                torch.zeros(2, dtype=torch.int32),
                torch.zeros(3, 8),
                VECTOR,
                VECTOR,
                1e-5,
            ),
            "input_ids is int32",
        ),
    ],
)
def check_bad_input(call: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()  # type: ignore[operator]


def check_block_choices() -> None:
    assert [row_block(n) for n in (1, 768, 1024, 1025, 16384)] == [
        (32, 1), (1024, 1), (1024, 1), (2048, 2), (16384, 16),
    ]  # fmt: skip
    assert [column_block(n) for n in (1, 768, 3072, 384, 100, 1500)] == [
        128, 256, 1024, 128, 128, 1024,
    ]  # fmt: skip


def check_columns_may_lie_apart() -> None:
    x = torch.randn(8, 5)
    assert torch.equal(bias_act(x.t(), None, "gelu"), bias_act(x.t().contiguous(), None, "gelu"))
