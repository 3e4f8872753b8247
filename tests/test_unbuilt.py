"""What a source tree without the compiled extension says, and what it says to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REMEDY = "run `make native` or `pip install -e .` in the checkout"


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what git tracks of the package and its tests, which holds no extension."""
    tree = tmp_path_factory.mktemp("unbuilt")
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "triton_kernels")
    shutil.copytree(ROOT / "fastbert", tree / "fastbert", ignore=ignored)
    (tree / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tree / "tests")
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "tests" / "test_nothing.py").write_text("def test_nothing() -> None: ...\n")
    return tree


def python(tree: Path, *arguments: str, path: Path | None = None) -> tuple[int, str]:
    """Run Python in the tree; return its status and everything it said."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(path or "")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_pytest_says_what_to_do(unbuilt: Path) -> None:
    status, said = python(unbuilt, "-m", "pytest", "-p", "no:cacheprovider")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert REMEDY in said
    assert "Traceback" not in said


def test_a_hidden_installation_is_named(unbuilt: Path, tmp_path: Path) -> None:
    """The folder in which Python is started comes before what is installed."""
    installed = tmp_path / "site"
    (installed / "fastbert").mkdir(parents=True)
    (installed / "fastbert" / "_C.cpython-311-x86_64-linux-gnu.so").touch()
    facts = installed / "fastbert_kernels-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fastbert-kernels\nVersion: 0.1.0\n"
    )
    (facts / "RECORD").write_text("fastbert/_C.cpython-311-x86_64-linux-gnu.so,,\n")
    show = "from fastbert.kernels import native; print(native.reason())"
    status, said = python(unbuilt, "-c", show, path=installed)
    assert status == 0, said
    assert f"{unbuilt / 'fastbert'} hides the package" in said
    assert str(installed / "fastbert") in said
    assert "pip install -e ." in said
