"""The host side of the CUDA products: tile choice and order as pure functions, argument checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastbert import kernels
from fastbert.kernels.cuda import _native

module, reason = _native.load()
if module is None:
    pytest.skip(reason, allow_module_level=True)
_cuda: Any = module

needs_no_device = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a CUDA device"
)
F32, BF16, F16, U8 = 0, 1, 2, 3
FMA, MMA, WGMMA = 1, 80, 90
# Major compute capability and multiprocessors.
H200, A100, B200 = (9, 132), (8, 108), (10, 148)
SOMEWHERE = 1 << 20


def config(
    rows: int, inner: int, outer: int, dtype: int, device: tuple[int, int], *form: int
) -> tuple[int, ...]:
    """(family, tile, its rows, its columns, tiles over rows, tiles over columns)."""
    family, tile = form or (0, -1)
    found: tuple[int, ...] = _cuda.gemm_config(rows, outer, inner, dtype, family, tile, *device)
    return found


def test_the_family_depends_on_dtype_architecture_and_depth() -> None:
    for rows in (1, 64, 100_000):
        assert config(rows, 768, 768, F32, H200)[0] == FMA
        for dtype in (BF16, F16, U8):
            assert config(rows, 768, 3072, dtype, H200)[0] == WGMMA
            assert config(rows, 768, 3072, dtype, A100)[0] == MMA
            # Machines after sm_90 have other instructions, but mma.sync as well.
            assert config(rows, 768, 3072, dtype, B200)[0] == MMA
        assert config(rows, 764, 768, BF16, H200)[0] == MMA
        assert config(rows, 764, 768, U8, H200)[0] == MMA
        assert config(rows, 776, 768, BF16, H200)[0] == WGMMA
        assert config(rows, 776, 768, U8, H200)[0] == MMA
        assert config(rows, 0, 768, BF16, H200)[0] == MMA


@pytest.mark.parametrize("dtype", [F32, BF16, U8])
@pytest.mark.parametrize("device", [H200, A100], ids=str)
def test_tiles_cover_the_output(device: tuple[int, int], dtype: int) -> None:
    for rows in (1, 63, 64, 65, 129, 5000, 16384):
        for outer in (1, 255, 257, 768, 3072):
            _, _, tile_m, tile_n, m, n = config(rows, 768, outer, dtype, device)
            assert (m - 1) * tile_m < rows <= m * tile_m
            assert (n - 1) * tile_n < outer <= n * tile_n


def test_large_tiles_for_many_rows_small_ones_for_few() -> None:
    for inner, outer in ((768, 768), (768, 3072), (3072, 768), (1024, 4096)):
        for device in (H200, A100):
            for dtype in (F32, BF16, U8):
                assert config(16384, inner, outer, dtype, device)[2] == 128
                assert config(16, inner, outer, dtype, device)[2] == 64
    # The wide tile reads fewest bytes; the one that keeps the weight hides its epilogue.
    assert config(16384, 768, 3072, BF16, H200)[1:4] == (0, 128, 256)
    assert config(16384, 768, 3072, U8, H200)[1:4] == (2, 128, 128)
    assert config(16384, 1024, 4096, U8, H200)[1:4] == (2, 128, 128)
    assert config(16384, 1040, 4096, U8, H200)[1:4] == (0, 128, 256)
    assert config(16384, 3072, 768, U8, H200)[1:4] == (0, 128, 256)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 9), (9, 1), (8, 3), (13, 5), (40, 7)])
def test_every_tile_is_taken_once(m: int, n: int) -> None:
    order = _cuda.tile_order(m, n)
    assert sorted(order) == [(i, j) for i in range(m) for j in range(n)]
    # At any time the tiles underway lie in at most two groups of eight row blocks.
    for start in range(len(order) - 7):
        assert len({i // 8 for i, _ in order[start : start + 8]}) <= 2


def test_more_tiles_than_a_launch_has() -> None:
    for rows, outer in ((2**40, 2**20), (2**30, 1), (1, 2**30), (2**25, 2**20)):
        with pytest.raises(ValueError, match="are more than one launch covers; split the rows"):
            config(rows, 64, outer, BF16, H200)
    assert config(2**30 - 1, 64, 1, BF16, H200)[0] == WGMMA


@pytest.mark.parametrize(
    ("form", "dtype", "device", "message"),
    [
        ((WGMMA, 0), BF16, A100, "wgmma family runs on compute capability 9, this device has 8"),
        ((WGMMA, 3), U8, H200, "there is no tile 3; this product has 3"),
        ((FMA, 0), BF16, H200, "multiplies float32 alone"),
        ((MMA, 0), F32, H200, "would round float32"),
        ((5, 0), BF16, H200, "family code 5 is unknown"),
    ],
)
def test_forms_that_do_not_exist(
    form: tuple[int, int], dtype: int, device: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^gemm_config: .*{message}"):
        config(64, 64, 64, dtype, device, *form)


def gemm(**changes: Any) -> None:
    s = SOMEWHERE
    arguments = {
        "op": "linear", "x": s, "x_stride": 64, "weight": s, "weight_stride": 64, "rows": 4,
        "width": 8, "depth": 64, "dtype": F16, "family": 0, "choice": -1, "bias": s,
        "residual": s, "residual_stride": 8, "out": s, "out_stride": 8, "out_dtype": F16,
        "activation": 1, "activation_a": 0.0, "activation_b": 0.0,
        "row_scale": 0, "row_zero_point": 0, "column_scale": 0,
        "column_sums": 0, "out_scale": 0, "out_zero_point": 0, "device": 0, "stream": 0,
    }  # fmt: skip
    unknown = set(changes) - set(arguments)
    assert not unknown, unknown
    _cuda.gemm(*(arguments | changes).values())


INTEGER = {
    "op": "int8_linear", "dtype": U8, "row_scale": SOMEWHERE, "row_zero_point": SOMEWHERE,
    "column_scale": SOMEWHERE, "column_sums": SOMEWHERE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 6}, "x has dtype"),
        ({"out_dtype": 3}, "the result has dtype"),
        ({"out_dtype": BF16}, "the result is bfloat16, x is float16"),
        ({"activation": 9}, "activation code 9"),
        ({"rows": -1}, "rows"),
        ({"depth": -1}, "K"),
        ({"x": 0}, "x"),
        ({"weight": 0}, "weight"),
        ({"out": 0}, "out"),
        ({"x_stride": 63}, "x"),
        ({"weight_stride": 63}, "weight"),
        ({"residual_stride": 7}, "residual"),
        ({"out_scale": SOMEWHERE}, "only 8-bit operands"),
        (INTEGER | {"row_scale": 0}, "the scale of x is missing"),
        (INTEGER | {"row_zero_point": 0}, "the zero_point of x is missing"),
        (INTEGER | {"column_scale": 0}, "the scale of the weight is missing"),
        (INTEGER | {"column_sums": 0}, "the sums of the weight is missing"),
        (INTEGER | {"column_sums": SOMEWHERE + 2}, "must start on 4 bytes"),
        (INTEGER | {"out_scale": SOMEWHERE}, "both a scale and a zero_point"),
        (
            INTEGER | {"depth": 65794, "x_stride": 65794, "weight_stride": 65794},
            "K is 65794, expected at most 65793",
        ),
    ],
)
def test_descriptions_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    op = changes.get("op", "linear")
    with pytest.raises(ValueError, match=rf"^{op}: .*{message}"):
        gemm(**changes)


def test_empty_products_need_no_device() -> None:
    gemm(rows=0)
    gemm(width=0, out_stride=0, residual_stride=0)
    gemm(**INTEGER | {"rows": 0, "row_scale": 0, "row_zero_point": 0})


def test_sums_of_weights_are_checked() -> None:
    s = SOMEWHERE
    with pytest.raises(ValueError, match=r"^weight_sums: .*K is 65794"):
        _cuda.weight_sums(s, s, 4, 65794, 65794, 0, 0)
    with pytest.raises(ValueError, match=r"^weight_sums: .*qweight"):
        _cuda.weight_sums(0, s, 4, 8, 8, 0, 0)
    assert _cuda.max_integer_depth == 65793


@needs_no_device
def test_without_a_device_products_say_so() -> None:
    with pytest.raises(RuntimeError, match=r"^linear: no CUDA device can be used"):
        gemm()
    with pytest.raises(RuntimeError, match=r"^int8_linear: no CUDA device can be used"):
        gemm(**INTEGER)
    with pytest.raises(RuntimeError, match=r"^weight_sums: no CUDA device can be used"):
        _cuda.weight_sums(SOMEWHERE, SOMEWHERE, 4, 8, 8, 0, 0)


def test_cpu_tensors_are_refused_by_name() -> None:
    x, weight = torch.zeros(2, 8), torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"^linear: the cuda kernels take CUDA tensors"):
        kernels.kernel("cuda", "linear")(x, weight)
    integer = weight.to(torch.int8)
    with pytest.raises(ValueError, match=r"^int8_linear: the cuda kernels take CUDA tensors"):
        kernels.kernel("cuda", "int8_linear")(x, integer, torch.ones(4))
    packer = kernels.packer("cuda", "int8_linear")
    assert packer is not None and kernels.packer("cuda", "linear") is None
    with pytest.raises(ValueError, match=r"^int8_linear_prepack: the cuda kernels take CUDA"):
        packer(integer)
    with pytest.raises(TypeError, match=r"^int8_linear_prepack: qweight must be an int8 tensor"):
        packer(weight)
