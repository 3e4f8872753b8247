"""The host side of the decoders' CUDA kernels: configurations, errors with no device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastbert import kernels
from fastbert.kernels.cuda import _native
from fastbert.ops import DECODING

module, reason = _native.load()
if module is None:
    pytest.skip(reason, allow_module_level=True)
_cuda: Any = module

F32, BF16, F16 = 0, 1, 2
SOMEWHERE = 1 << 20


def rms_norm(**changes: Any) -> None:
    s = SOMEWHERE
    arguments = {
        "x": s, "residual": 0, "weight": s, "out": s, "sum": 0, "rows": 4, "width": 8,
        "x_stride": 8, "residual_stride": 0, "out_stride": 8, "dtype": F16, "eps": 1e-5,
        "device": 0, "stream": 0,
    }  # fmt: skip
    _cuda.rms_norm(*(arguments | changes).values())


def xielu(**changes: Any) -> None:
    s = SOMEWHERE
    arguments = {
        "x": s, "numbers": [s] * 4, "out": s, "rows": 4, "width": 8, "x_stride": 8,
        "out_stride": 8, "dtype": F16, "device": 0, "stream": 0,
    }  # fmt: skip
    _cuda.xielu(*(arguments | changes).values())


def qk_norm_rope(**changes: Any) -> None:
    s = SOMEWHERE
    arguments = {
        "operands": [s, s, 0, s, s, 0], "strides": [64, 16] * 6, "cache": (0, 0),
        "weights": [s, s], "angles": [s, s], "angle_strides": [8, 8], "tokens": 4, "heads": 4,
        "kv_heads": 2, "dim": 16, "dtype": F16, "eps": 1e-5, "device": 0, "stream": 0,
    }  # fmt: skip
    _cuda.qk_norm_rope(*(arguments | changes).values())


def linear_w8a16(**changes: Any) -> None:
    s = SOMEWHERE
    arguments = {
        "operands": [s, s, s, 0, 0, s], "strides": [64, 64, 0, 8], "sizes": [4, 8, 64],
        "x_dtype": F16, "dtype": F16, "activation": 0, "a": 0.0, "b": 0.0, "device": 0, "stream": 0,
    }  # fmt: skip
    _cuda.linear_w8a16(*(arguments | changes).values())


@pytest.mark.parametrize(
    ("entry", "changes", "message"),
    [
        (rms_norm, {"dtype": 3}, "dtype"),
        (rms_norm, {"eps": float("nan")}, "eps"),
        (rms_norm, {"width": 20000, "x_stride": 20000}, "rows have 20000 elements"),
        (rms_norm, {"weight": 0}, "weight"),
        (rms_norm, {"residual": SOMEWHERE, "residual_stride": 3}, "residual"),
        (rms_norm, {"rows": 1 << 40}, "rows are more than one launch covers"),
        (xielu, {"dtype": 3}, "dtype"),
        (xielu, {"numbers": [SOMEWHERE, SOMEWHERE, 0, SOMEWHERE]}, "beta"),
        (xielu, {"x_stride": 7}, "x"),
        (xielu, {"width": 1 << 60, "x_stride": 1 << 60}, "wider than one launch covers"),
        (qk_norm_rope, {"dtype": 3}, "dtype"),
        (qk_norm_rope, {"dim": 15}, "head_dim is 15"),
        (qk_norm_rope, {"dim": 258}, "head_dim is 258"),
        (qk_norm_rope, {"tokens": 1 << 31}, "more than one launch covers"),
        (qk_norm_rope, {"heads": 1 << 24}, "more than one launch covers"),
        (qk_norm_rope, {"operands": [SOMEWHERE, 0, 0, SOMEWHERE, SOMEWHERE, 0]}, "k is missing"),
        (qk_norm_rope, {"operands": [SOMEWHERE] * 5 + [0]}, "the result of v is missing"),
        (qk_norm_rope, {"angle_strides": [7, 8]}, "cos"),
        (qk_norm_rope, {"weights": [SOMEWHERE, 0]}, "k_weight"),
        (linear_w8a16, {"x_dtype": 3}, "dtype"),
        (linear_w8a16, {"x_dtype": BF16}, "x is bfloat16, expected float32 or float16"),
        (linear_w8a16, {"activation": 8}, "activation code 8"),
        (linear_w8a16, {"sizes": [4, 8, -1]}, "K is -1"),
        (linear_w8a16, {"sizes": [4, 8, 65]}, "x"),
        (linear_w8a16, {"strides": [64, 63, 0, 8]}, "qweight"),
        (linear_w8a16, {"strides": [64, 64, 0, 7]}, "out"),
        (linear_w8a16, {"sizes": [1 << 22, 8, 64]}, "more than one launch covers"),
        (linear_w8a16, {"operands": [SOMEWHERE, SOMEWHERE, 0, 0, 0, SOMEWHERE]}, "weight_scale"),
    ],
)
def test_descriptions_of_decoders_that_do_not_fit(
    entry: Callable[..., None], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{entry.__name__}: .*{message}"):
        entry(**changes)


@pytest.mark.parametrize(
    ("dim", "dtype", "lanes", "heads"),
    [(2, F16, 1, 128), (16, F16, 1, 128), (64, F16, 4, 32), (80, BF16, 8, 16), (128, BF16, 8, 16),
     (256, F16, 16, 8), (128, F32, 16, 8), (256, F32, 32, 4)],
)  # fmt: skip
def test_head_config(dim: int, dtype: int, lanes: int, heads: int) -> None:
    for count in (0, 1, heads, heads + 1, 40):
        assert _cuda.head_config(7, count, dim, dtype) == (lanes, heads, 7, -(-count // heads))
    # Both halves of a head in 16-byte pieces of its lanes.
    assert lanes * 16 * 2 >= dim * (4 if dtype == F32 else 2) and lanes * heads == 128


def test_few_rows_config() -> None:
    assert _cuda.few_rows_config(1, 4096, BF16) == (8, 16, 256, 1)
    assert _cuda.few_rows_config(8, 4097, F16) == (8, 16, 257, 1)
    assert _cuda.few_rows_config(9, 4096, F16) == (32, 16, 256, 1)
    assert _cuda.few_rows_config(33, 1, F16) == (32, 16, 1, 2)
    assert _cuda.few_rows_config(33, 9, F32) == (8, 8, 2, 5)
    assert _cuda.few_rows_config(0, 0, F32) == (8, 8, 0, 0)


ENTRIES: dict[str, Callable[[], None]] = {
    "rms_norm": rms_norm,
    "xielu": xielu,
    "qk_norm_rope": qk_norm_rope,
    "linear_w8a16": linear_w8a16,
    "linear_w8a16 of float32": lambda: linear_w8a16(x_dtype=F32, dtype=F32),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("entry", ENTRIES)
def test_without_a_device_every_entry_says_so(entry: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{entry.split()[0]}: no CUDA device can be used"):
        ENTRIES[entry]()


def test_empty_calls_need_no_device() -> None:
    rms_norm(rows=0)
    xielu(rows=0)
    qk_norm_rope(tokens=0)
    qk_norm_rope(heads=0, kv_heads=0)
    linear_w8a16(sizes=[0, 8, 64])
    linear_w8a16(sizes=[4, 0, 64])


@pytest.mark.parametrize("op", DECODING)
def test_cpu_tensors_are_refused_by_name(op: str) -> None:
    arguments = next(iter(DECODING[op].cases())).make(torch.float32)
    with pytest.raises(ValueError, match=f"^{op}: the cuda kernels take CUDA tensors"):
        kernels.kernel("cuda", op)(**arguments)
