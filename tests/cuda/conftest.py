"""csrc/cuda compiled as C++ for the CPU, for the tests that emulate a GPU."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

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
def host_compiler() -> tuple[str, Path]:
    """A C++ compiler, and the folder of CUDA's headers."""
    headers, compiler = cuda_headers(), shutil.which("c++")
    if headers is None or compiler is None:
        pytest.skip("there are no CUDA headers or no C++ compiler on this machine")
    return compiler, headers


@pytest.fixture(scope="session")
def emulated(
    tmp_path_factory: pytest.TempPathFactory, host_compiler: tuple[str, Path]
) -> ModuleType:
    """The extension with every kernel, on an emulated sm_90 (tests/cuda/emulated)."""
    compiler, headers = host_compiler
    pybind11 = pytest.importorskip("pybind11")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # one for all workers
    out = folder / "emulated" / "_cuda.so"
    out.parent.mkdir(exist_ok=True)
    # Before csrc: headers of the same name stand in as well.
    here = Path(__file__).parent / "emulated"
    flags = [
        "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-fPIC",
        "-I", here, "-I", ROOT / "csrc", "-isystem", headers, "-isystem", pybind11.get_include(),
        "-isystem", sysconfig.get_paths()["include"], "-include", here / "emulation.h",
    ]  # fmt: skip
    with (out.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            compiled(compiler, flags, here, out)
    spec = importlib.util.spec_from_file_location("_cuda", out)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(compiler: str, flags: list[object], here: Path, out: Path) -> None:
    """Compile csrc/cuda as C++, two files at a time, those that take longest first."""
    # Files of the same name in `emulated` stand in for what talks to a device.
    sources = [
        here / file.name if (here / file.name).exists() else file
        for file in (ROOT / "csrc/cuda").rglob("*.cpp")
    ]
    sources += [*(ROOT / "csrc/common").glob("*.cpp"), *(ROOT / "csrc/cuda/ops").glob("*.cu")]

    def run(*command: object) -> None:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]

    def compile_one(numbered: tuple[int, Path]) -> Path:
        number, source = numbered
        made = out.parent / f"{number}.o"
        run(compiler, *flags, "-c", "-o", made, "-x", "c++", source)
        return made

    sources.sort(key=lambda source: (source.suffix != ".cu", source.name))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, enumerate(sources)))
    run(compiler, "-shared", "-o", out.with_suffix(".new"), *objects)
    out.with_suffix(".new").replace(out)


def cuobjdump(option: str) -> str:
    """What the cuobjdump of the triton wheel says of fastbert/_cuda."""
    triton = pytest.importorskip("triton", reason="the triton package, which carries cuobjdump")
    module, reason = _native.load()
    if module is None:
        pytest.skip(reason)
    assert module.__file__ is not None
    # nvcc's own where it is there: that of triton 3.6 (CUDA 12.8) does not read what nvcc 13 made.
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = shutil.which("cuobjdump") or bundled
    done = subprocess.run(
        [tool, option, module.__file__], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="session")
def registers() -> dict[tuple[str, str], int]:
    """Registers of a thread at the launch, by architecture and mangled name."""
    found = {}
    for image in cuobjdump("--dump-resource-usage").split("\narch = ")[1:]:
        arch = image.split("\n")[0]
        for name, count in re.findall(r"Function (\S+):\n\s*REG:(\d+)", image):
            found[arch, name] = int(count)
    return found


@pytest.fixture(scope="session")
def machine_code() -> Callable[[str, str], dict[str, str]]:
    """(architecture, part of a kernel's name) -> machine code by mangled name."""
    dumped = cuobjdump("--dump-sass")
    found: dict[tuple[str, str], str] = {}
    for image in re.split(r"\n(?=\tcode for )", dumped):
        arch = re.search(r"code for (sm_\w+)", image)
        for text in re.split(r"\n(?=\t\tFunction : )", image)[1:]:
            name = re.match(r"\t\tFunction : (\S+)", text)
            assert arch and name
            found[arch[1], name[1]] = text

    def kernels(architecture: str, part: str) -> dict[str, str]:
        mine = {name: s for (a, name), s in found.items() if a == architecture and part in name}
        assert mine, f"there is no {part} for {architecture}"
        return mine

    return kernels


@pytest.fixture
def on_the_cpu(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends the CUDA kernels' callers to the emulation, with CPU tensors."""
    monkeypatch.setattr(_native, "load", lambda: (emulated, ""))
    monkeypatch.setattr(_native, "DEVICE", "cpu")
    monkeypatch.setattr(_native, "target", lambda x: (0, 0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what runs on a device in the order of what it tells: CUDA's kernels, models, Triton's.

    Triton's compile for a long time, and a machine with a GPU may be there for ten minutes. pytest
    takes folders and files of a command line in an order of its own.
    """

    def place(item: pytest.Item) -> int:
        if not item.get_closest_marker("gpu"):
            return 0
        spec = getattr(item, "callspec", None)
        backend = None if spec is None else spec.params.get("backend")
        return 3 if backend == "triton" else 2 if item.path.name == "test_gpu_path.py" else 1

    items.sort(key=place)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """End a worker whose CUDA context is lost: every later test in it would fail for nothing."""
    yield
    if call.excinfo is not None and item.get_closest_marker("gpu") and context_is_lost():
        print(f"{item.nodeid}: {call.excinfo.exconly()}; its CUDA context is lost", flush=True)
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)  # xdist names the test and starts another worker


def context_is_lost() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
