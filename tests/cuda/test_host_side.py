"""The host side of the CUDA kernels: configurations as pure functions, errors with no device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastbert import kernels
from fastbert.kernels import cuda
from fastbert.kernels.cuda import _native

module, reason = _native.load()
if module is None:
    pytest.skip(reason, allow_module_level=True)
_cuda: Any = module

needs_no_device = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a CUDA device"
)
F32, BF16, F16 = 0, 1, 2
SOMEWHERE = 1 << 20


@pytest.mark.parametrize(
    ("width", "warps", "rows_per_block"),
    [
        (1, 1, 4),
        (768, 1, 4),
        (1024, 1, 4),
        (1025, 2, 1),
        (4096, 4, 1),
        (4097, 8, 1),
        (16384, 16, 1),
    ],
)
def test_row_config(width: int, warps: int, rows_per_block: int) -> None:
    for rows in (0, 1, 3, 4, 5, 100_001):
        assert _cuda.row_config(rows, width) == (warps, rows_per_block, -(-rows // rows_per_block))
    # Registers hold 1024 elements a warp, and a block has at most 1024 threads.
    assert warps * 1024 >= width and warps * rows_per_block * 32 <= 1024


@pytest.mark.parametrize("width", [0, -1, 16385])
def test_row_config_refuses_widths(width: int) -> None:
    with pytest.raises(ValueError, match=f"rows have {width} elements"):
        _cuda.row_config(4, width)


def test_element_config() -> None:
    assert _cuda.element_config(7, 3072, BF16) == (128, 3, 7)
    assert _cuda.element_config(7, 3073, BF16) == (128, 4, 7)
    assert _cuda.element_config(7, 768, F32) == (128, 2, 7)
    # The y axis of a grid ends at 65 535; beyond, each block takes several rows.
    assert _cuda.element_config(1_000_000, 8, F16) == (128, 1, 65535)
    assert _cuda.element_config(0, 0, F16) == (128, 1, 1)


def test_alignment_decides_the_wide_form() -> None:
    assert _cuda.rows_aligned(SOMEWHERE, 768, 768, BF16)
    assert not _cuda.rows_aligned(SOMEWHERE + 2, 768, 768, BF16)
    assert not _cuda.rows_aligned(SOMEWHERE, 771, 768, BF16)
    assert not _cuda.rows_aligned(SOMEWHERE, 776, 764, BF16)
    assert _cuda.rows_aligned(SOMEWHERE, 772, 764, F32)


def row_norm(**changes: Any) -> None:
    arguments = {
        "op": "add_layer_norm", "x": SOMEWHERE, "x_bias": 0, "residual": 0, "weight": SOMEWHERE,
        "bias": SOMEWHERE, "out": SOMEWHERE, "sum": 0, "rows": 4, "width": 8, "x_stride": 8,
        "residual_stride": 0, "out_stride": 8, "dtype": F32, "activation": 0, "activation_a": 0.0,
        "activation_b": 0.0, "eps": 1e-5,
        "device": 0, "stream": 0,
    }  # fmt: skip
    _cuda.row_norm(*(arguments | changes).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 7}, "dtype"),
        ({"activation": 8}, "activation code 8"),
        ({"eps": -1.0}, "eps"),
        ({"width": 20000, "x_stride": 20000, "out_stride": 20000}, "rows have 20000 elements"),
        ({"rows": -1}, "rows"),
        ({"x": 0}, "x"),
        ({"out": 0}, "out"),
        ({"weight": 0}, "weight"),
        ({"x_stride": 7}, "x"),
        ({"residual": SOMEWHERE, "residual_stride": 3}, "residual"),
    ],
)
def test_descriptions_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^add_layer_norm: .*{message}"):
        row_norm(**changes)


def entries() -> dict[str, Callable[[], None]]:
    gathers = [(SOMEWHERE, SOMEWHERE, 9), (0, 0, 0), (0, 0, 0), (0, 0, 0)]
    s = SOMEWHERE
    return {
        "add_layer_norm": row_norm,
        "bias_act": lambda: _cuda.bias_act(s, s, s, 4, 8, 8, 8, F16, 1, 0.0, 0.0, 0, 0),
        "embed_layer_norm": lambda: _cuda.embed_norm(0, 0, gathers, s, s, s, 4, 8, F16, 1e-5, 0, 0),
        "quantize_rows": lambda: _cuda.quantize_rows(s, s, s, s, 4, 8, 8, F16, 0, 0),
    }


@needs_no_device
@pytest.mark.parametrize("op", entries())
def test_without_a_device_every_entry_says_so(op: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{op}: no CUDA device can be used"):
        entries()[op]()


@needs_no_device
def test_unavailable_says_why() -> None:
    assert "no CUDA device can be used" in (cuda.unavailable() or "")


def test_empty_calls_need_no_device() -> None:
    row_norm(rows=0)


def test_cpu_tensors_are_refused_by_name() -> None:
    x, vector = torch.zeros(2, 8), torch.zeros(8)
    ids = torch.zeros(2, dtype=torch.int64)
    for op, arguments in (
        ("add_layer_norm", (x, vector, vector, 1e-5)),
        ("act_layer_norm", (x, None, vector, vector, 1e-5, "gelu")),
        ("bias_act", (x, vector, "gelu")),
        ("quantize_rows", (x,)),
        ("embed_layer_norm", (ids, x, vector, vector, 1e-5)),
    ):
        with pytest.raises(ValueError, match=f"^{op}: the cuda kernels take CUDA tensors"):
            kernels.kernel("cuda", op)(*arguments)
