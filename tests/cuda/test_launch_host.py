"""A launch makes its device current, and no context on a GPU that the process does not use."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, host_compiler: tuple[str, Path]) -> Path:
    """csrc/cuda/launch.cpp over a runtime that is pretended."""
    compiler, headers = host_compiler
    out = tmp_path_factory.mktemp("launch") / "launch"
    sources = [ROOT / "csrc/cuda/launch.cpp", ROOT / "tests/cuda/pretended_runtime.cpp"]
    flags = ["-std=c++17", "-w", "-I", ROOT / "csrc", "-isystem", headers, "-o", out]
    done = subprocess.run(
        list(map(str, [compiler, *sources, *flags])), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.parametrize(
    ("device", "used", "current", "left"),
    [
        (1, 0, 0, "1 1 01"),  # GPU 0 was current by default: it is left without a context
        (1, 1, 0, "1 0 11"),  # somebody works there: it becomes current again
        (0, 1, 1, "0 1 11"),
        (0, 1, 0, "0 0 10"),
    ],
)
def test_a_launch_leaves_the_devices(
    launch: Path, device: int, used: int, current: int, left: str
) -> None:
    command = [launch, str(device), str(used), str(current)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == left, "current meanwhile, then; contexts on 0 and 1"
