"""csrc/cuda compiled as C++ for the CPU, for the tests that emulate a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fastbert.kernels.cuda import _native

ROOT = Path(__file__).resolve().parents[2]


def cuda_headers() -> Path | None:
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        roots.insert(0, str(Path(nvcc).resolve().parents[1]))
    for root in filter(None, roots):
        if Path(root, "include", "cuda_bf16.h").exists():
            return Path(root, "include")
    return None


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The extension with every kernel, on an emulated sm_90 (tests/cuda/emulated)."""
    headers = cuda_headers()
    compiler = shutil.which("c++")
    pybind11 = pytest.importorskip("pybind11")
    if headers is None or compiler is None:
        pytest.skip("there are no CUDA headers or no C++ compiler on this machine")
    here = Path(__file__).parent / "emulated"
    out = tmp_path_factory.mktemp("emulated") / "_cuda.so"
    # Files of the same name in `emulated` stand in for what talks to a device.
    plain = [
        here / file.name if (here / file.name).exists() else file
        for file in sorted((ROOT / "csrc/cuda").rglob("*.cpp"))
    ]
    plain += sorted((ROOT / "csrc/common").glob("*.cpp"))
    kernels = sorted((ROOT / "csrc/cuda/ops").glob("*.cu"))
    command = [
        compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-o", out,
        # Before csrc: headers of the same name stand in as well.
        "-I", here, "-I", ROOT / "csrc", "-isystem", headers, "-isystem", pybind11.get_include(),
        "-isystem", sysconfig.get_paths()["include"], "-include", here / "emulation.h",
        *plain, "-x", "c++", *kernels,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    spec = importlib.util.spec_from_file_location("_cuda", out)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def machine_code() -> Callable[[str, str], dict[str, str]]:
    """(architecture, part of a kernel's name) -> machine code by mangled name."""
    triton = pytest.importorskip("triton", reason="the triton package, which carries cuobjdump")
    module, reason = _native.load()
    if module is None:
        pytest.skip(reason)
    assert module.__file__ is not None
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run(
        [tool, "--dump-sass", module.__file__], capture_output=True, text=True, check=True
    )
    found: dict[tuple[str, str], str] = {}
    for image in re.split(r"\n(?=\tcode for )", done.stdout):
        arch = re.search(r"code for (sm_\w+)", image)
        for text in re.split(r"\n(?=\t\tFunction : )", image)[1:]:
            name = re.match(r"\t\tFunction : (\S+)", text)
            assert arch and name
            found[arch[1], name[1]] = text

    def kernels(architecture: str, part: str) -> dict[str, str]:
        return {name: s for (a, name), s in found.items() if a == architecture and part in name}

    return kernels


@pytest.fixture
def on_the_cpu(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends the CUDA kernels' callers to the emulation, with CPU tensors."""
    monkeypatch.setattr(_native, "load", lambda: (emulated, ""))
    monkeypatch.setattr(_native, "DEVICE", "cpu")
    monkeypatch.setattr(_native, "target", lambda x: (0, 0))
