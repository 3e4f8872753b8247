"""What nvcc made of the CUDA products: the matrix instructions, and nothing in local memory."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

MachineCode = Callable[[str, str], dict[str, str]]
MMA, WGMMA, FMA = "gemm_mma_kernel", "gemm_wgmma_kernel", "gemm_fma_kernel"
# Mangled: fastbert::DType's codes of bf16, f16 and u8.
OPERANDS = {"DTypeE1": "BF16", "DTypeE2": "F16", "DTypeE3": "U8.S8"}


def operands(name: str) -> str:
    return next(kind for code, kind in OPERANDS.items() if code in name)


def no_local_memory(name: str, sass: str) -> None:
    assert not re.search(r"\b(STL|LDL)\b", sass), f"{name} uses local memory"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_mma(machine_code: MachineCode, arch: str) -> None:
    kernels = machine_code(arch, MMA)
    # Three kinds of operands, two tiles, aligned rows or any.
    assert len(kernels) == 12
    for name, sass in kernels.items():
        no_local_memory(name, sass)
        kind = operands(name)
        if kind == "U8.S8":
            products = re.findall(r"IMMA\.16832\.U8\.S8", sass)
        else:
            products = re.findall(rf"HMMA\.16816\.F32{r'.BF16' if kind == 'BF16' else ''} ", sass)
        # 64 x 32 or 32 x 32 per warp in steps of 16 x 8, two steps a slab.
        assert len(products) == 2 * (16 if "Li128E" in name else 8), (name, len(products))
        assert "LDSM.16.M88.4" in sass
        assert ("LDGSTS.E.BYPASS.128" in sass) == name_is_wide(name), name


def name_is_wide(name: str) -> bool:
    """The last template argument of gemm_mma_kernel and gemm_fma_kernel."""
    return "Lb1E" in name


def test_wgmma(machine_code: MachineCode) -> None:
    kernels = machine_code("sm_90a", WGMMA)
    assert len(kernels) == 7
    widths = set()
    for name, sass in kernels.items():
        no_local_memory(name, sass)
        kind = operands(name)
        if kind == "U8.S8":
            found = re.findall(r"IGMMA\.64x(\d+)x32\.U8\.S8", sass)
        else:
            found = re.findall(
                rf"HGMMA\.64x(\d+)x16\.F32{r'.BF16' if kind == 'BF16' else ''} ", sass
            )
        # One slab of 128 bytes, unrolled: four steps, twice where a warpgroup has two blocks.
        width = int(found[0])
        assert found == [str(width)] * (8 if width == 128 else 4), (name, found)
        widths.add((kind, width))
        assert "UTMALDG.2D" in sass
        # One fence a slab: were accumulators touched between the steps, there would be more.
        assert sass.count("WARPGROUP.ARRIVE") == 1, name
        assert ("USETMAXREG" in sass) == (width > 64), name
    assert widths == {(kind, n) for kind in OPERANDS.values() for n in (64, 256)} | {("U8.S8", 128)}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_fma(machine_code: MachineCode, arch: str) -> None:
    kernels = machine_code(arch, FMA)
    assert len(kernels) == 4
    for name, sass in kernels.items():
        no_local_memory(name, sass)
        assert "HMMA" not in sass and "HGMMA" not in sass, f"{name} rounds its operands"
        own = 8 if "Li8E" in name else 4
        # The products of a slab of 16 are unrolled.
        assert sass.count("FFMA") >= 16 * own * own
        # Slabs are read from shared memory four elements at a time.
        assert "LDS.128" in sass


def test_sm_80_has_no_code_of_sm_90a(machine_code: MachineCode) -> None:
    for name, sass in machine_code("sm_80", WGMMA).items():
        assert "GMMA" not in sass and "UTMALDG" not in sass, name
