"""The sources of csrc/cuda against the headers of CUDA 12, whose runtime older drivers load.

No compiler of CUDA 12 is among PyPI's packages, so this says nothing of machine code: host files
compile as they are, kernels as C++ for the emulation. Runs where the headers are installed:
pip install nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12 nvidia-cuda-cccl-cu12.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = [*(CSRC / "cuda").rglob("*.cpp"), *(CSRC / "cuda" / "ops").glob("*.cu")]


def headers() -> list[Path]:
    """Return the include folders of the wheels, or skip where one is missing."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    folders = []
    for wheel in ("cuda_runtime", "cuda_nvcc", "cuda_cccl"):
        found = [root / wheel / "include" for root in roots if (root / wheel / "include").is_dir()]
        if not found:
            pytest.skip(f"nvidia-{wheel.replace('_', '-')}-cu12 is not installed")
        folders.append(found[0])
    return folders


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles(source: Path) -> None:
    compiler = shutil.which("c++")
    pybind11 = pytest.importorskip("pybind11")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folders = headers()
    version = (folders[0] / "cuda_runtime_api.h").read_text(encoding="utf-8")
    assert "#define CUDART_VERSION  12" in version, "the headers are not of CUDA 12"
    flags = ["-std=c++17", "-fsyntax-only", "-w"]
    if source.suffix == ".cu":
        flags += ["-I", str(HERE / "emulated"), "-include", str(HERE / "emulated" / "emulation.h")]
    flags += ["-I", str(CSRC), "-isystem", pybind11.get_include()]
    for folder in (*folders, sysconfig.get_paths()["include"]):
        flags += ["-isystem", str(folder)]
    done = subprocess.run(
        [compiler, *flags, "-x", "c++", str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
