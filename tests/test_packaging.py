"""The package as a user gets it: sdist, wheel, a fresh environment without torch, bad settings."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastbert
from fastbert.kernels import native

ROOT = Path(__file__).parents[1]

# Loads the extension alone: fastbert itself needs torch.
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
C = importlib.util.module_from_spec(spec)
spec.loader.exec_module(C)
"""


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def sources(folder: str, *endings: str) -> set[str]:
    """Files of a folder of the repository, as paths from its root."""
    found = (p for p in (ROOT / folder).rglob("*") if p.is_file() and not p.is_symlink())
    return {
        str(p.relative_to(ROOT))
        for p in found
        if p.suffix in endings and "fastbert/triton_kernels" not in str(p.relative_to(ROOT))
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    # In a copy: egg-info and build folders do not belong in the tree under test.
    tree = tmp_path_factory.mktemp("tree")
    listing = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    names = listing.stdout.split("\0") if listing.returncode == 0 else []
    if not names:
        pytest.skip("this is not a git checkout, so what belongs in the sdist is not known")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    built = run(sys.executable, "-c", code, cwd=tree)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.tar.gz"))


def test_sdist_holds_all_that_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = sources("csrc", ".h", ".cpp", ".inl", ".cu", ".cuh") | sources(
        "fastbert", ".py", ".c", ".tsv"
    )
    needed |= sources("triton_kernels", ".py") | sources("cmake", ".cmake")
    needed |= {"CMakeLists.txt", "pyproject.toml", "setup.py", "Makefile", "LICENSE"}
    # What README.md and the tests refer to.
    needed |= sources("bench", ".py", ".sh", ".json") | sources("docs", ".md")
    needed |= sources("tests", ".py", ".json", ".cpp", ".h") | sources("requirements", ".txt")
    needed |= {"CHANGELOG.md", "CONTRIBUTING.md", ".ci/run"}
    assert needed <= names, f"missing: {sorted(needed - names)}"


def test_the_metadata_of_the_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        (name,) = [
            name for name in archive.getnames() if name.count("/") == 1 and "PKG-INFO" in name
        ]
        stream = archive.extractfile(name)
        assert stream is not None
        facts = stream.read().decode()
    for line in (
        f"Version: {fastbert.__version__}",
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "Author: The fastbert developers",
        "Classifier: Typing :: Typed",
    ):
        assert f"\n{line}\n" in facts, line


def test_the_version_stands_in_one_place() -> None:
    assert native.library.build_info()["version"] == fastbert.__version__
    for file in ("pyproject.toml", "CMakeLists.txt", "setup.py"):
        assert fastbert.__version__ not in (ROOT / file).read_text(encoding="utf-8"), file


@pytest.mark.parametrize(("cxx", "words"), [("", "c++ or g++"), ("no-such-c++ -O2", "no-such-c++")])
def test_a_missing_compiler_is_named(cxx: str, words: str, tmp_path: Path) -> None:
    """Before CMake speaks; the compiler is the first thing that a fresh machine lacks."""
    code = "import runpy, sys; sys.argv = ['setup.py', 'build_ext']; runpy.run_path({!r})"
    code = code.format(str(ROOT / "setup.py"))
    result = run(sys.executable, "-c", code, cwd=tmp_path, PATH=str(tmp_path), CXX=cxx)
    assert result.returncode == 1
    assert "fastbert needs a C++17 compiler" in result.stderr and words in result.stderr
    assert "apt-get install g++" in result.stderr
    assert "CMake" not in result.stdout + result.stderr


@pytest.mark.slow
def test_wheel_builds_without_torch_and_loads_in_a_fresh_environment(
    sdist: Path, tmp_path: Path
) -> None:
    # Ordinary build isolation: pip makes an environment with pyproject's build requirements only.
    wheel = run(
        sys.executable, "-m", "pip", "wheel", sdist, "--no-deps", "-w", tmp_path,
        cwd=tmp_path, FASTBERT_CUDA="off",
    )  # fmt: skip
    assert wheel.returncode == 0, wheel.stdout + wheel.stderr
    file = next(tmp_path.glob("fastbert_kernels-*.whl"))
    names = set(zipfile.ZipFile(file).namelist())
    modules = sources("fastbert", ".py", ".c", ".tsv", ".json", ".txt")
    modules |= {f"fastbert/{name}" for name in sources("triton_kernels", ".py")}
    assert modules <= names, f"missing: {sorted(modules - names)}"
    assert not any(name.startswith(("tests/", "triton_kernels/", "bench/")) for name in names)

    assert run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path).returncode == 0
    python = tmp_path / "venv" / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "--no-deps", file, cwd=tmp_path)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    extension = next((tmp_path / "venv").glob("lib/*/site-packages/fastbert/_C*.so"))
    check = LOAD + (
        "info = C.build_info()\n"
        "assert 'torch' not in sys.modules\n"
        "assert info['cuda'].startswith('no: FASTBERT_CUDA=off'), info\n"
        "assert info['isas'][0] == 'scalar', info\n"
        "print(C.active_isa())\n"
    )
    loaded = run(python, "-c", check, extension, cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == native.extension().detected_isa()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "avx9",
            ["FASTBERT_CPU_ISA", '"avx9"', "scalar, avx2, avx512, avx512_vnni, avx512_bf16, amx"],
        ),
        ("AVX2", ['"AVX2"', "must be one of"]),
    ],
)
def test_unknown_instruction_set_is_named(setting: str, words: list[str], tmp_path: Path) -> None:
    file = native.extension().__file__
    code = LOAD + "C.active_isa()"
    result = run(sys.executable, "-c", code, str(file), cwd=tmp_path, FASTBERT_CPU_ISA=setting)
    assert result.returncode != 0
    assert "ValueError" in result.stderr
    for word in words:
        assert word in result.stderr


def test_forced_instruction_set_is_used_or_refused_with_what_is_missing(tmp_path: Path) -> None:
    extension = native.extension()
    for isa in ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"):
        code = LOAD + "print(C.active_isa())"
        file = str(extension.__file__)
        result = run(sys.executable, "-c", code, file, cwd=tmp_path, FASTBERT_CPU_ISA=isa)
        missing = extension.missing_for(isa)
        if missing:
            assert result.returncode != 0
            assert missing in result.stderr
        else:
            assert result.stdout.strip() == isa


def test_cuda_on_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    # An empty FASTBERT_NVCC stands for a search that found nothing, on machines that have one too.
    result = run(
        "cmake", "-S", ROOT, "-B", tmp_path, "-DFASTBERT_PYTHON=OFF", "-DFASTBERT_CUDA=on",
        "-DFASTBERT_NVCC=", cwd=tmp_path,
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    )  # fmt: skip
    assert result.returncode != 0
    assert "no CUDA compiler was found" in result.stderr.replace("\n  ", " ")


def test_cuda_setting_must_be_known(tmp_path: Path) -> None:
    result = run(
        "cmake", "-S", ROOT, "-B", tmp_path, "-DFASTBERT_PYTHON=OFF", "-DFASTBERT_CUDA=maybe",
        cwd=tmp_path,
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    )  # fmt: skip
    assert result.returncode != 0
    assert 'FASTBERT_CUDA is "maybe"; it must be on, off or auto' in result.stderr.replace("\n", "")
