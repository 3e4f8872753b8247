"""How tests run where there is a GPU, shown without one: their order, and lost contexts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
# The hooks of the real one, where a context is lost once a test has said so.
HOOKS = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("of_cuda", {str(CONFTEST)!r})
of_cuda = importlib.util.module_from_spec(spec)
spec.loader.exec_module(of_cuda)
of_cuda.context_is_lost = lambda: hasattr(sys, "lost")
pytest_runtest_makereport = of_cuda.pytest_runtest_makereport
pytest_collection_modifyitems = of_cuda.pytest_collection_modifyitems
def pytest_configure(config): config.addinivalue_line("markers", "gpu: needs a device")
"""
BEGIN = "import sys, pytest\npytestmark = pytest.mark.gpu\n"


def run(folder: Path, *options: str) -> str:
    (folder / "conftest.py").write_text(HOOKS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", folder]
    done = subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout


def test_a_lost_context_costs_its_own_test(tmp_path: Path) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    (tmp_path / "test_it.py").write_text(
        BEGIN + "def test_spoils(): sys.lost = True; assert False\n"
        "def test_next(): assert not hasattr(sys, 'lost')\n"
        "def test_fails(): assert False\n"
        "def test_last(): assert not hasattr(sys, 'lost')\n"
    )
    told = run(tmp_path, "-n", "1", "-v")
    assert "2 failed, 2 passed" in told, told
    assert "test_spoils: assert False; its CUDA context is lost" in told or "crashed" in told


def test_cudas_kernels_come_first_and_tritons_last(tmp_path: Path) -> None:
    for name in ("gpu_path", "on_device", "products_on_device"):
        (tmp_path / f"test_{name}.py").write_text(
            BEGIN + "def test_it(): pass\n"
            "@pytest.mark.parametrize('backend', ['triton', 'cuda'])\n"
            "def test_both(backend): pass\n"
        )
    told = run(tmp_path, "--collect-only", "-q", "-m", "gpu", tmp_path.as_posix())
    names = [line.removeprefix("test_") for line in told.splitlines() if "::" in line]
    assert names == [
        "on_device.py::test_it", "on_device.py::test_both[cuda]",
        "products_on_device.py::test_it", "products_on_device.py::test_both[cuda]",
        "gpu_path.py::test_it", "gpu_path.py::test_both[cuda]",
        "gpu_path.py::test_both[triton]", "on_device.py::test_both[triton]",
        "products_on_device.py::test_both[triton]",
    ], told  # fmt: skip
