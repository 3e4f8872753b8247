"""Which CUDA compiler a build takes: the one that is named, and no other in its place.

A machine with several toolkits would otherwise get kernels for other drivers than were meant.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cmake" / "nvcc.cmake"
TELL = """
set(FASTBERT_CUDA {wanted})
include("{script}")
message(STATUS "found [${{FASTBERT_NVCC}}]")
"""


def toolkit(folder: Path) -> Path:
    """Makes a folder of a toolkit whose compiler is a program that does nothing."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    return folder


def found(folder: Path, wanted: str = "on", **environment: str) -> subprocess.CompletedProcess[str]:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("there is no cmake")
    script = folder / "tell.cmake"
    script.write_text(TELL.format(script=SCRIPT, wanted=wanted))
    names = ("CUDACXX", "CUDA_HOME", "CUDA_PATH")
    own = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [cmake, "-P", script], env=own | environment, capture_output=True, text=True, check=False
    )


def test_the_named_compiler_is_taken(tmp_path: Path) -> None:
    older, newer = toolkit(tmp_path / "cuda-12"), toolkit(tmp_path / "cuda-13")
    path = f"{newer / 'bin'}:{os.environ['PATH']}"
    for environment in (
        {"CUDACXX": str(older / "bin" / "nvcc")},
        {"CUDA_HOME": str(older)},
        {"CUDA_PATH": str(older)},
        {"CUDACXX": str(older / "bin" / "nvcc"), "CUDA_HOME": str(newer)},
    ):
        done = found(tmp_path, PATH=path, **environment)
        assert f"found [{older / 'bin' / 'nvcc'}]" in done.stdout, (environment, done)
    # Where nothing is named: that of /usr/local/cuda, else the one on PATH.
    usual = Path("/usr/local/cuda/bin/nvcc")
    expected = usual if usual.exists() else newer / "bin" / "nvcc"
    assert f"found [{expected}]" in found(tmp_path, PATH=path).stdout


@pytest.mark.parametrize("name", ["CUDACXX", "CUDA_HOME", "CUDA_PATH"])
def test_a_named_compiler_that_is_not_there_is_an_error(name: str, tmp_path: Path) -> None:
    newer = toolkit(tmp_path / "cuda-13")
    path = f"{newer / 'bin'}:{os.environ['PATH']}"
    done = found(tmp_path, PATH=path, **{name: str(tmp_path / "cuda-12")})
    assert done.returncode != 0 and f"{name}={tmp_path / 'cuda-12'}" in done.stderr, done
    done = found(tmp_path, "auto", PATH=path, **{name: str(tmp_path / "cuda-12")})
    assert done.returncode == 0 and "NOTFOUND]" in done.stdout, done
