"""What nvcc made of csrc/cuda: both architectures, wide accesses, nothing in local memory.

Reads fastbert/_cuda with the cuobjdump of the triton wheel; no GPU is needed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fastbert.kernels.cuda import _native

triton = pytest.importorskip("triton", reason="the triton package, which carries cuobjdump")
module, reason = _native.load()
if module is None:
    pytest.skip(reason, allow_module_level=True)

MachineCode = Callable[[str, str], dict[str, str]]
KERNELS = (
    "row_norm_kernel", "embed_norm_kernel", "bias_act_kernel", "quantize_rows_kernel",
    "rms_norm_kernel", "xielu_kernel", "qk_norm_rope_kernel",
)  # fmt: skip
ARCHITECTURES = ("sm_80", "sm_90a")
# 3 dtypes, each for aligned rows (b1) and for any rows (b0).
VARIANTS = 6


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel(machine_code: MachineCode, kernel: str, arch: str) -> None:
    mine = machine_code(arch, kernel)
    assert len(mine) == VARIANTS, sorted(mine)
    for name, sass in mine.items():
        assert not re.search(r"\b(STL|LDL)\b", sass), f"{name} uses local memory"
        wide = re.search(r"LDG\.E\S*\.128", sass) is not None
        # ...ELb1E...: the second template argument is true.
        assert wide == ("ELb1E" in name), f"{name}: 16-byte loads are for aligned rows alone"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", [*KERNELS, "gemm_wgmma_kernel", "gemm_mma_kernel"])
def test_activations_branch_once_for_all_elements(
    machine_code: MachineCode, kernel: str, arch: str
) -> None:
    for name, sass in machine_code(arch, kernel).items():
        # A jump through a table, and for most of the time none of its elements in flight.
        assert not re.search(r"\bBRX\b", sass), name
        # 1 and 2: bfloat16 and float16. Not all divisions are approximate: those that make a scale.
        if kernel in ("bias_act_kernel", "row_norm_kernel") and re.search("DTypeE[12]", name):
            wide = "ELb1E" in name
            branches = len(re.findall(r"\bBRA\b", sass))
            pieces = 1 if kernel == "bias_act_kernel" else 4
            assert not wide or branches <= 30 * pieces, f"{name}: {branches} branches"
            assert len(re.findall(r"\bCALL\b", sass)) <= 3, f"{name} divides by a subroutine"
            # 760 to 776 with GELU for 16 bits, 872 to 880 with the erf of float32.
            count = len(re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/", sass, re.M))
            assert kernel != "bias_act_kernel" or not wide or count <= 820, f"{name}: {count}"


def test_ptx_for_later_architectures_is_there() -> None:
    assert module is not None and module.__file__ is not None
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run(
        [tool, "--list-ptx", module.__file__], capture_output=True, text=True, check=True
    )
    assert "sm_90" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["100", "120"])
@pytest.mark.parametrize("source", ["attention_sm80_bf16", "gemm_mma"])
def test_blackwell_has_machine_code(source: str, arch: str, tmp_path: Path) -> None:
    """FASTBERT_CUDA_ARCHITECTURES may name it, for wheels: drivers then need not compile PTX."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("there is no nvcc")
    csrc, made = Path(__file__).parents[2] / "csrc", tmp_path / "kernel.cubin"
    subprocess.run(
        [nvcc, f"-I{csrc}", "-O3", "-std=c++17", f"-arch=sm_{arch}", "-cubin", "-o", made,
         csrc / "cuda" / "ops" / f"{source}.cu"],
        check=True,
    )  # fmt: skip
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    sass = subprocess.run([tool, "--dump-sass", made], capture_output=True, text=True, check=True)
    for text in sass.stdout.split("Function : ")[1:]:
        assert re.search(r"\b[HI]MMA\.", text) and not re.search(r"\b(STL|LDL)\b", text)
